# Wall-clock time: of layers (claim C9, figures 5 and 11), of whole models and of decoding.


rule benchmark_cpu:
    input:
        lambda w: benchmark_masks("cpu", w.entry),
    output:
        "results/benchmarks/cpu/{entry}.csv",
    log:
        "results/logs/benchmarks/cpu/{entry}.log",
    threads: workflow.cores  # nothing beside it, or the times are worth nothing
    params:
        cfg=lambda w: plain(BENCHMARKS["cpu"][w.entry]),
        code=code("benchmark_layer"),
    script:
        "../scripts/benchmark_layer.py"


rule benchmark_gpu:
    input:
        lambda w: benchmark_masks("layer", w.entry),
    output:
        "results/benchmarks/layer/{entry}.csv",
    log:
        "results/logs/benchmarks/layer/{entry}.log",
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        cfg=lambda w: plain(BENCHMARKS["layer"][w.entry]),
        code=code("benchmark_layer"),
    script:
        "../scripts/benchmark_layer.py"


rule benchmark_model:
    input:
        lambda w: benchmark_masks("model", w.entry),
    output:
        "results/benchmarks/model/{entry}.csv",
    log:
        "results/logs/benchmarks/model/{entry}.log",
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        cfg=lambda w: plain(BENCHMARKS["model"][w.entry]),
        code=code("benchmark_model"),
    script:
        "../scripts/benchmark_model.py"


rule benchmark_decode:
    output:
        "results/benchmarks/decode/{entry}.csv",
    log:
        "results/logs/benchmarks/decode/{entry}.log",
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        cfg=lambda w: plain(BENCHMARKS["decode"][w.entry]),
        code=code("benchmark_decode"),
    script:
        "../scripts/benchmark_decode.py"


rule benchmark_table:
    input:
        lambda w: [entry["path"] for entry in benchmark_entries(w.table)],
    output:
        "results/benchmarks/{table}.csv",
    log:
        "results/logs/benchmarks/{table}.log",
    wildcard_constraints:
        table="|".join(BENCHMARKS),
    params:
        entries=lambda w: benchmark_entries(w.table),
        code=code("gather"),
    script:
        "../scripts/gather.py"


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
