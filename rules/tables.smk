# The tables that figures, claims and the report read.
TABLES = "results/tables"


def tables():
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
    return [
        {"path": str(x.evaluation("test")).replace(".csv", "_layers.csv")} | labels_of(x)
        for x in LINEAGES
        if x.method != "dense"
    ]


def activity_entries():
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
    chosen = [load_map_lineage(task) for task in CONFIG.tasks]
    return [{"path": f"{x.folder}/load_maps/{x.rule}.csv"} | labels_of(x) for x in chosen]


rule tradeoff:
    input:
        lambda w: [entry["path"] for entry in point_entries("test")],
    output:
        report(
            f"{TABLES}/tradeoff.csv", caption="../report/tradeoff.rst", category="Tables"
        ),
    params:
        entries=point_entries("test"),
        code=code("tradeoff"),
    log:
        "results/logs/tables/tradeoff.log",
    script:
        "../scripts/tradeoff.py"


rule validation:
    # The same table on validation images: what options are to be chosen by.
    input:
        lambda w: [entry["path"] for entry in point_entries("validation")],
    output:
        f"{TABLES}/validation.csv",
    params:
        entries=point_entries("validation"),
        code=code("tradeoff"),
    log:
        "results/logs/tables/validation.log",
    script:
        "../scripts/tradeoff.py"


rule layers:
    input:
        lambda w: [entry["path"] for entry in layer_entries()],
    output:
        f"{TABLES}/layers.csv",
    params:
        entries=layer_entries(),
        code=code("gather"),
    log:
        "results/logs/tables/layers.log",
    script:
        "../scripts/gather.py"


use rule layers as active_neurons with:
    input:
        lambda w: [entry["path"] for entry in activity_entries()],
    output:
        f"{TABLES}/activity.csv",
    params:
        entries=activity_entries(),
        code=code("gather"),
    log:
        "results/logs/tables/activity.log",


use rule layers as patch_load with:
    input:
        lambda w: [entry["path"] for entry in patch_load_entries()],
    output:
        f"{TABLES}/patch_load.csv",
    params:
        entries=patch_load_entries(),
        code=code("gather"),
    log:
        "results/logs/tables/patch_load.log",


rule summary:
    input:
        f"{TABLES}/tradeoff.csv",
    output:
        report(f"{TABLES}/summary.csv", caption="../report/summary.rst", category="Tables"),
    params:
        code=code("summary"),
    log:
        "results/logs/tables/summary.log",
    script:
        "../scripts/summary.py"


rule claims:
    input:
        tradeoff=f"{TABLES}/tradeoff.csv",
        activity=f"{TABLES}/activity.csv",
        layers=f"{TABLES}/layers.csv",
        patch_load=f"{TABLES}/patch_load.csv",
    output:
        report(f"{TABLES}/claims.csv", caption="../report/claims.rst", category="Tables"),
    params:
        cfg={name: plain(task.figures) for name, task in sorted(CONFIG.tasks.items())},
        code=code("claims"),
    log:
        "results/logs/tables/claims.log",
    script:
        "../scripts/claims.py"
