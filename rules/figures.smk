# The paper's figures, as PNG and PDF, drawn from the tables.


for figure, (key, title) in TRADEOFF_FIGURES.items():

    rule:
        name:
            figure
        input:
            f"{TABLES}{{task}}/tradeoff.csv",
        output:
            png=figure_png(f"{FIGURES}{{task}}/", figure),
            pdf=f"{FIGURES}{{task}}/{figure}.pdf",
        log:
            f"results/logs/figures/{{suite}}{{task}}/{figure}.log",
        params:
            panels=figure_panels(key),
            title=title,
            code=code("figure_tradeoff"),
        script:
            "../scripts/figure_tradeoff.py"


use rule figure_4 as figure_4_all_tasks with:
    input:
        "results/tables/tradeoff.csv",
    output:
        png=figure_png("results/figures/", "figure_4"),
        pdf="results/figures/figure_4.pdf",
    log:
        "results/logs/figures/figure_4.log",
    params:
        panels=[panel_of("main", task, "tradeoff") for task in CONFIG.tasks],
        title=TRADEOFF_FIGURES["figure_4"][1],
        code=code("figure_tradeoff"),


rule figure_2b:
    input:
        f"{TABLES}{{task}}/activity.csv",
    output:
        png=figure_png(f"{FIGURES}{{task}}/", "figure_2b"),
        pdf=f"{FIGURES}{{task}}/figure_2b.pdf",
    log:
        "results/logs/figures/{suite}{task}/figure_2b.log",
    params:
        cfg=lambda w: panel_of(suite_of(w), w.task, "active_neurons"),
        code=code("figure_activity"),
    script:
        "../scripts/figure_activity.py"


for figure, key in LAYER_FIGURES.items():

    rule:
        name:
            figure
        input:
            f"{TABLES}{{task}}/layers.csv",
        output:
            png=figure_png(f"{FIGURES}{{task}}/", figure),
            pdf=f"{FIGURES}{{task}}/{figure}.pdf",
        log:
            f"results/logs/figures/{{suite}}{{task}}/{figure}.log",
        params:
            cfg=layers_cfg(key),
            code=code("figure_layers"),
        script:
            "../scripts/figure_layers.py"


rule figure_8b:
    input:
        tensors=load_map_tensors,
        about="results/data/{task}/dataset.json",
    output:
        png=figure_png(f"{FIGURES}{{task}}/", "figure_8b"),
        pdf=f"{FIGURES}{{task}}/figure_8b.pdf",
    log:
        "results/logs/figures/{suite}{task}/figure_8b.log",
    params:
        code=code("figure_load_maps"),
    script:
        "../scripts/figure_load_maps.py"


rule figure_3:
    output:
        png=figure_png("results/figures/", "figure_3"),
        pdf="results/figures/figure_3.pdf",
    log:
        "results/logs/figures/figure_3.log",
    params:
        code=code("figure_projections"),
    script:
        "../scripts/figure_projections.py"


rule figure_10:
    output:
        png=figure_png("results/figures/", "figure_10"),
        pdf="results/figures/figure_10.pdf",
    log:
        "results/logs/figures/figure_10.log",
    params:
        cfg={"d_ff": 3072, "d_model": 768},  # ViT-B, as in the paper
        code=code("figure_cost_formula"),
    script:
        "../scripts/figure_cost_formula.py"
