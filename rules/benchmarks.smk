# Wall-clock time: of layers (claim C9, figures 5 and 11), of whole models and of decoding.


rule benchmark_cpu:
    input:
        benchmark_masks("cpu"),
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
    input:
        benchmark_masks("layer"),
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


rule benchmark_model:
    input:
        benchmark_masks("model"),
    output:
        "results/benchmarks/model.csv",
    log:
        "results/logs/benchmarks/model.log",
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        cfg=benchmark_cfg("model"),
        code=code("benchmark_model"),
    script:
        "../scripts/benchmark_model.py"


rule benchmark_decode:
    output:
        "results/benchmarks/decode.csv",
    log:
        "results/logs/benchmarks/decode.log",
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        cfg=benchmark_cfg("decode"),
        code=code("benchmark_decode"),
    script:
        "../scripts/benchmark_decode.py"


if CONFIG.benchmarks.masks:

    rule benchmark_masks:
        input:
            model=f"{masks_model()}/model.safetensors",
            data=[
                f"results/data/{CONFIG.benchmarks.masks.task}/{name}"
                for name in ("dataset.json", "test.safetensors")
            ],
        output:
            "results/benchmarks/masks.safetensors",
        log:
            "results/logs/benchmarks/masks.log",
        resources:
            gpu=1,
        params:
            cfg=plain(CONFIG.benchmarks.masks),
            code=code("benchmark_masks"),
        script:
            "../scripts/benchmark_masks.py"


rule benchmark_claims:
    input:
        timed_layers(),
    output:
        report(
            "results/benchmarks/claims.csv",
            caption="../report/benchmark_claims.rst",
            category="Wall-clock time",
        ),
    log:
        "results/logs/benchmarks/claims.log",
    params:
        code=code("benchmark_claims"),
    script:
        "../scripts/benchmark_claims.py"


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
        cfg=lambda w: {"layers": "first" if w.name == "layer" else "all"},
        code=code("figure_wall_clock"),
    script:
        "../scripts/figure_wall_clock.py"


use rule figure_5 as figure_11 with:
    output:
        png=report(
            "results/figures/benchmarks/{name}_appendix.png",
            caption="../report/figure_11.rst",
            category="Wall-clock time",
        ),
        pdf="results/figures/benchmarks/{name}_appendix.pdf",
    log:
        "results/logs/figures/benchmarks/{name}_appendix.log",
    wildcard_constraints:
        name="layer",
    params:
        cfg={"layers": "others", "subject": "Other layers"},
        code=code("figure_wall_clock"),


use rule figure_5 as figure_wall_clock with:
    output:
        png=report(
            "results/figures/benchmarks/{name}.png",
            caption="../report/wall_clock.rst",
            category="Wall-clock time",
        ),
        pdf="results/figures/benchmarks/{name}.pdf",
    wildcard_constraints:
        name="model|decode",
    params:
        cfg=lambda w: {"subject": {"model": "Whole models", "decode": "Decoding"}[w.name]},
        code=code("figure_wall_clock"),
