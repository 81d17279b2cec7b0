# Wall-clock time of layers: claim C9, figures 5 and 11.
import shutil
import sys

BENCHMARKS = {"cpu": CONFIG.benchmarks.cpu, "layer": CONFIG.benchmarks.gpu}


def benchmark_cfg(name):
    """Options of a benchmark's layers."""
    return {layer: plain(cfg) for layer, cfg in BENCHMARKS[name].items()}


def benchmark_results():
    """The figures, and with them the tables, of what this machine can time."""
    names = [name for name, layers in BENCHMARKS.items() if layers]
    if "layer" in names and not shutil.which("nvidia-smi"):
        names.remove("layer")
        if "benchmarks" in sys.argv:
            print("no NVIDIA driver here: benchmarks of the GPU are left out", file=sys.stderr)
    return [f"results/figures/benchmarks/{name}.png" for name in names]


rule benchmark_cpu:
    output:
        "results/benchmarks/cpu.csv",
    log:
        "results/logs/benchmarks/cpu.log",
    threads: workflow.cores  # nothing beside it, or the times are worth nothing
    params:
        cfg=benchmark_cfg("cpu"),
        code=code("benchmark_layer"),
    script:
        "../scripts/benchmark_layer.py"


rule benchmark_gpu:
    output:
        "results/benchmarks/layer.csv",
    log:
        "results/logs/benchmarks/layer.log",
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        cfg=benchmark_cfg("layer"),
        code=code("benchmark_layer"),
    script:
        "../scripts/benchmark_layer.py"


rule figure_5:
    input:
        "results/benchmarks/{name}.csv",
    output:
        png=report(
            "results/figures/benchmarks/{name}.png",
            caption="../report/figure_5.rst",
            category="Wall-clock time",
        ),
        pdf="results/figures/benchmarks/{name}.pdf",
    log:
        "results/logs/figures/benchmarks/{name}.log",
    wildcard_constraints:
        name="cpu|layer",
    params:
        code=code("figure_wall_clock"),
    script:
        "../scripts/figure_wall_clock.py"
