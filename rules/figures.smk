# The paper's figures, as PNG and PDF, drawn from the tables.


for figure, (key, title) in TRADEOFF_FIGURES.items():

    rule:
        name:
            figure
        input:
            f"{TABLES}/tradeoff.csv",
        output:
            png=figure_png(f"{FIGURES}/{{task}}", figure),
            pdf=f"{FIGURES}/{{task}}/{figure}.pdf",
        log:
            f"results/logs/figures/{{task}}/{figure}.log",
        params:
            cfg=figure_cfg(key),
            title=title,
            code=code("figure_tradeoff"),
        script:
            "../scripts/figure_tradeoff.py"


rule figure_2b:
    input:
        f"{TABLES}/activity.csv",
    output:
        png=figure_png(f"{FIGURES}/{{task}}", "figure_2b"),
        pdf=f"{FIGURES}/{{task}}/figure_2b.pdf",
    log:
        "results/logs/figures/{task}/figure_2b.log",
    params:
        cfg=figure_cfg("active_neurons"),
        code=code("figure_activity"),
    script:
        "../scripts/figure_activity.py"


rule figure_8a:
    input:
        f"{TABLES}/layers.csv",
    output:
        png=figure_png(f"{FIGURES}/{{task}}", "figure_8a"),
        pdf=f"{FIGURES}/{{task}}/figure_8a.pdf",
    log:
        "results/logs/figures/{task}/figure_8a.log",
    params:
        cfg=figure_cfg("layers"),
        values=lambda w: CONFIG.tasks[w.task].figures.layer_values,
        code=code("figure_layers"),
    script:
        "../scripts/figure_layers.py"


rule figure_8b:
    input:
        tensors=load_map_tensors,
        about="results/data/{task}/dataset.json",
    output:
        png=figure_png(f"{FIGURES}/{{task}}", "figure_8b"),
        pdf=f"{FIGURES}/{{task}}/figure_8b.pdf",
    log:
        "results/logs/figures/{task}/figure_8b.log",
    params:
        code=code("figure_load_maps"),
    script:
        "../scripts/figure_load_maps.py"


rule figure_10:
    output:
        png=figure_png(FIGURES, "figure_10"),
        pdf=f"{FIGURES}/figure_10.pdf",
    log:
        "results/logs/figures/figure_10.log",
    params:
        cfg={"d_ff": 3072, "d_model": 768},  # ViT-B, as in the paper
        code=code("figure_cost_formula"),
    script:
        "../scripts/figure_cost_formula.py"
