# Wall-clock time: of layers (claim C9, figures 5 and 11), of whole models and of decoding.

import sys

TIMED = benchmarks.tables(PLAN)

if "benchmarks" in sys.argv and benchmarks.timed_here(PLAN) != benchmarks.configured(PLAN):
    print("no NVIDIA driver here: benchmarks of the GPU are left out", file=sys.stderr)


rule benchmark_cpu:
    input:
        lambda w: benchmarks.masks(PLAN, "cpu", w.entry),
    output:
        "results/benchmarks/cpu/{entry}.csv",
    log:
        "results/logs/benchmarks/cpu/{entry}.log",
    threads: CPUS  # nothing beside it, or the times are worth nothing
    params:
        cfg=lambda w: plain(TIMED["cpu"][w.entry]),
        code=PLAN.code("benchmark_layer"),
    script:
        "../scripts/benchmark_layer.py"


rule benchmark_gpu:
    input:
        lambda w: benchmarks.masks(PLAN, "layer", w.entry),
    output:
        "results/benchmarks/layer/{entry}.csv",
    log:
        "results/logs/benchmarks/layer/{entry}.log",
    threads: CPUS
    resources:
        **GPU,
    params:
        cfg=lambda w: plain(TIMED["layer"][w.entry]),
        code=PLAN.code("benchmark_layer"),
    script:
        "../scripts/benchmark_layer.py"


rule benchmark_model:
    input:
        lambda w: benchmarks.masks(PLAN, "model", w.entry),
    output:
        "results/benchmarks/model/{entry}.csv",
    log:
        "results/logs/benchmarks/model/{entry}.log",
    threads: CPUS
    resources:
        **GPU,
    params:
        cfg=lambda w: plain(TIMED["model"][w.entry]),
        code=lambda w: PLAN.benchmark_code("benchmark_model", TIMED["model"][w.entry]),
    script:
        "../scripts/benchmark_model.py"


rule benchmark_decode:
    output:
        "results/benchmarks/decode/{entry}.csv",
    log:
        "results/logs/benchmarks/decode/{entry}.log",
    threads: CPUS
    resources:
        **GPU,
    params:
        cfg=lambda w: plain(TIMED["decode"][w.entry]),
        code=lambda w: PLAN.benchmark_code("benchmark_decode", TIMED["decode"][w.entry]),
    script:
        "../scripts/benchmark_decode.py"


rule benchmark_table:
    input:
        lambda w: [entry["path"] for entry in benchmarks.entries(PLAN, w.table)],
    output:
        "results/benchmarks/{table}.csv",
    log:
        "results/logs/benchmarks/{table}.log",
    wildcard_constraints:
        table="|".join(TIMED),
    localrule: True
    params:
        entries=lambda w: benchmarks.entries(PLAN, w.table),
        code=PLAN.code("gather"),
    script:
        "../scripts/gather.py"


if PLAN.config.benchmarks.masks:
    masks_line = benchmarks.masks_line(PLAN)

    rule benchmark_masks:
        input:
            model=masks_line.last.model,
            data=PLAN.data_files(masks_line.last.data, ["test"]),
        output:
            "results/benchmarks/masks.safetensors",
        log:
            "results/logs/benchmarks/masks.log",
        resources:
            **GPU,
        params:
            cfg=plain(PLAN.config.benchmarks.masks),
            knob=masks_line.knob,
            code=PLAN.model_code("benchmark_masks", masks_line.last, masks_line.knob),
        script:
            "../scripts/benchmark_masks.py"


rule benchmark_claims:
    input:
        benchmarks.timed_layers(PLAN),
    output:
        "results/benchmarks/claims.csv",
        page=table_page("wall-clock claims", "benchmark_claims", "benchmark_claims"),
    log:
        "results/logs/benchmarks/claims.log",
    localrule: True
    params:
        code=PLAN.code("benchmark_claims"),
    script:
        "../scripts/benchmark_claims.py"


for name, files in benchmarks.layer_figures(PLAN).items():  # figures 5 and 11

    rule:
        name:
            name
        input:
            files,
        localrule: True


rule draw_figure_5:
    input:
        table="results/benchmarks/{name}.csv",
    output:
        png=timed_png("{name}", "figure_5", "Figure 5: layers"),
        pdf="results/figures/benchmarks/{name}.pdf",
    log:
        "results/logs/figures/benchmarks/{name}.log",
    wildcard_constraints:
        name="cpu|layer",
    localrule: True
    params:
        cfg=lambda w: benchmarks.DRAWN[w.name],
        draw=WALL_CLOCK.draw,
        code=PLAN.figure_code(WALL_CLOCK),
    script:
        "../scripts/figure.py"


use rule draw_figure_5 as draw_figure_11 with:
    output:
        png=timed_png("{name}_appendix", "figure_11", "Figure 11: other layers"),
        pdf="results/figures/benchmarks/{name}_appendix.pdf",
    log:
        "results/logs/figures/benchmarks/{name}_appendix.log",
    wildcard_constraints:
        name="layer",
    params:
        cfg=lambda w: benchmarks.DRAWN[f"{w.name}_appendix"],
        draw=WALL_CLOCK.draw,
        code=PLAN.figure_code(WALL_CLOCK),


use rule draw_figure_5 as draw_wall_clock with:
    output:
        png=timed_png("{name}", "wall_clock", "whole models and decoding"),
        pdf="results/figures/benchmarks/{name}.pdf",
    wildcard_constraints:
        name="model|decode",
    params:
        cfg=lambda w: benchmarks.DRAWN[w.name],
        draw=WALL_CLOCK.draw,
        code=PLAN.figure_code(WALL_CLOCK),
