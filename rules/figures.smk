# The paper's figures, as PNG and PDF, drawn from the tables alone.
FIGURES = "results/figures"

# Cost–quality figures of a task: which of its `figures` lists they compare, and their titles.
TRADEOFF_FIGURES = {
    "figure_4": ("tradeoff", "Cost against quality"),
    "figure_2a": ("sparsity_levels", "Sparsity of the base model"),
    "figure_2c": ("selection_rules", "Selection rules"),
    "figure_9d": ("expert_sizes", "Size of the experts"),
}
TASK_FIGURES = [*TRADEOFF_FIGURES, "figure_2b", "figure_8a", "figure_8b"]


def figures():
    names = [f"{task}/{figure}" for task in CONFIG.tasks for figure in TASK_FIGURES]
    return [f"{FIGURES}/{name}.{ending}" for name in [*names, "figure_10"] for ending in ("png", "pdf")]


def figure_png(folder, name):
    """The PNG of a figure, with its caption in the HTML report."""
    category = "Figures" if folder == FIGURES else "Figures: {task}"
    return report(f"{folder}/{name}.png", caption=f"../report/{name}.rst", category=category)


def figure_cfg(key):
    """Variants of a task's figure and their names in the legend."""

    def cfg(wildcards):
        task = CONFIG.tasks[wildcards.task]
        variants = getattr(task.figures, key)
        labels = {name: task.variants[name].label for name in variants}
        return {"labels": labels, "variants": variants}

    return cfg


for figure, (key, title) in TRADEOFF_FIGURES.items():

    rule:
        name:
            figure
        input:
            f"{TABLES}/tradeoff.csv",
        output:
            png=figure_png(FIGURES + "/{task}", figure),
            pdf=f"{FIGURES}/{{task}}/{figure}.pdf",
        params:
            cfg=figure_cfg(key),
            title=title,
            code=code("figure_tradeoff"),
        log:
            f"results/logs/figures/{{task}}/{figure}.log",
        script:
            "../scripts/figure_tradeoff.py"


rule figure_2b:
    input:
        f"{TABLES}/activity.csv",
    output:
        png=figure_png(FIGURES + "/{task}", "figure_2b"),
        pdf=FIGURES + "/{task}/figure_2b.pdf",
    params:
        cfg=figure_cfg("active_neurons"),
        code=code("figure_activity"),
    log:
        "results/logs/figures/{task}/figure_2b.log",
    script:
        "../scripts/figure_activity.py"


rule figure_8a:
    input:
        f"{TABLES}/layers.csv",
    output:
        png=figure_png(FIGURES + "/{task}", "figure_8a"),
        pdf=FIGURES + "/{task}/figure_8a.pdf",
    params:
        cfg=figure_cfg("layers"),
        values=lambda w: CONFIG.tasks[w.task].figures.layer_values,
        code=code("figure_layers"),
    log:
        "results/logs/figures/{task}/figure_8a.log",
    script:
        "../scripts/figure_layers.py"


def load_map_tensors(wildcards):
    lineage = load_map_lineage(wildcards.task)
    return f"{lineage.folder}/load_maps/{lineage.rule}.safetensors"


rule figure_8b:
    input:
        tensors=load_map_tensors,
        about="results/data/{task}/dataset.json",
    output:
        png=figure_png(FIGURES + "/{task}", "figure_8b"),
        pdf=FIGURES + "/{task}/figure_8b.pdf",
    params:
        code=code("figure_load_maps"),
    log:
        "results/logs/figures/{task}/figure_8b.log",
    script:
        "../scripts/figure_load_maps.py"


rule figure_10:
    output:
        png=figure_png(FIGURES, "figure_10"),
        pdf=f"{FIGURES}/figure_10.pdf",
    params:
        cfg={"d_ff": 3072, "d_model": 768},  # ViT-B, as in the paper
        code=code("figure_cost_formula"),
    log:
        "results/logs/figures/figure_10.log",
    script:
        "../scripts/figure_cost_formula.py"
