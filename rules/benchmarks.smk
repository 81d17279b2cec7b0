# Wall-clock time of layers: claim C9, figures 5 and 11.


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
