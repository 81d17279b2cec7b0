# Which files and options the evaluations, tables and figures read.

# Cost–quality figures of a task: which of its `figures` lists they compare, and their titles.
TRADEOFF_FIGURES = {
    "figure_4": ("tradeoff", "Cost against quality"),
    "figure_2a": ("sparsity_levels", "Sparsity of the base model"),
    "figure_2c": ("selection_rules", "Selection rules"),
    "figure_9d": ("expert_sizes", "Size of the experts"),
}
TASK_FIGURES = [*TRADEOFF_FIGURES, "figure_2b", "figure_8a", "figure_8b"]


def vendored_files(wildcards):
    """Files in the repository that a vendored dataset is read from."""
    kind, _, name = CONFIG.tasks[wildcards.task].data.source.partition(":")
    return (
        sorted(map(str, (ROOT / "resources" / name).glob("*.parquet")))
        if kind == "vendored"
        else []
    )


def select_cfg(wildcards):
    """Operating points of the rule that a path names."""
    task = CONFIG.tasks[wildcards.model.split("/")[2]]
    return {
        "batch_size": task.eval_batch_size,
        "values": getattr(task.select, wildcards.knob),
    }


def data_of_model(wildcards):
    """The one split that an evaluation reads."""
    task = wildcards.model.split("/")[2]
    return [
        f"results/data/{task}/dataset.json",
        f"results/data/{task}/{wildcards.part}.safetensors",
    ]


def tables():
    """All tables of `all`."""
    names = ("tradeoff", "summary", "claims", "activity", "layers", "patch_load")
    return [f"{TABLES}/{name}.csv" for name in names]


def labels_of(lineage):
    """Leading columns of a lineage's rows."""
    return {
        "task": lineage.task,
        "method": lineage.method,
        "variant": lineage.variant,
        "seed": lineage.seed,
    }


def model_name(task):
    """The model column: architecture, layers and width."""
    return f"{task.model.architecture}-{task.model.layers}x{task.model.d_model}"


def point_entries(part):
    """Every operating-point table with what its rows belong to."""
    return [
        {
            "path": str(x.evaluation(part)),
            "model": model_name(CONFIG.tasks[x.task]),
            "dataset": CONFIG.tasks[x.task].data.source.partition(":")[2],
            "metric": "accuracy",
        }
        | labels_of(x)
        for x in LINEAGES
    ]


def layer_entries():
    """Every table of executed experts per layer."""
    return [
        {"path": str(x.evaluation("test")).replace(".csv", "_layers.csv")} | labels_of(x)
        for x in LINEAGES
        if x.method != "dense"
    ]


def activity_entries():
    """Every histogram of active neurons."""
    return [
        {"path": f"{x.folder_of('sparsify')}/activity/test.csv"} | labels_of(x)
        for x in LINEAGES
        if x.method != "dense"
    ]


def load_map_lineage(task):
    """The variant whose load maps are drawn, of the first seed."""
    wanted = (task, CONFIG.tasks[task].figures.load_maps.variant, CONFIG.seeds[0])
    return next(x for x in LINEAGES if (x.task, x.variant, x.seed) == wanted)


def patch_load_entries():
    """The tables of load per patch."""
    chosen = [load_map_lineage(task) for task in CONFIG.tasks]
    return [{"path": f"{x.folder}/load_maps/{x.rule}.csv"} | labels_of(x) for x in chosen]


def figures():
    """All figures of `all`."""
    names = [f"{task}/{figure}" for task in CONFIG.tasks for figure in TASK_FIGURES]
    return [
        f"{FIGURES}/{name}.{ending}" for name in [*names, "figure_10"] for ending in ("png", "pdf")
    ]


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
        labels |= task.figures.labels.get(key, {})
        return {"labels": labels, "variants": variants}

    return cfg


def load_map_tensors(wildcards):
    """Images and load maps that are drawn."""
    lineage = load_map_lineage(wildcards.task)
    return f"{lineage.folder}/load_maps/{lineage.rule}.safetensors"
