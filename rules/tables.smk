# The tables that figures, claims and the report read.


rule tradeoff:
    input:
        lambda w: [entry["path"] for entry in point_entries("test")],
    output:
        report(f"{TABLES}/tradeoff.csv", caption="../report/tradeoff.rst", category="Tables"),
    log:
        "results/logs/tables/tradeoff.log",
    params:
        entries=point_entries("test"),
        code=code("tradeoff"),
    script:
        "../scripts/tradeoff.py"


rule validation:
    # The same table on validation images: what options are to be chosen by.
    input:
        lambda w: [entry["path"] for entry in point_entries("validation")],
    output:
        f"{TABLES}/validation.csv",
    log:
        "results/logs/tables/validation.log",
    params:
        entries=point_entries("validation"),
        code=code("tradeoff"),
    script:
        "../scripts/tradeoff.py"


rule layers:
    input:
        lambda w: [entry["path"] for entry in layer_entries()],
    output:
        f"{TABLES}/layers.csv",
    log:
        "results/logs/tables/layers.log",
    params:
        entries=layer_entries(),
        code=code("gather"),
    script:
        "../scripts/gather.py"


use rule layers as active_neurons with:
    input:
        lambda w: [entry["path"] for entry in activity_entries()],
    output:
        f"{TABLES}/activity.csv",
    log:
        "results/logs/tables/activity.log",
    params:
        entries=activity_entries(),
        code=code("gather"),


use rule layers as patch_load with:
    input:
        lambda w: [entry["path"] for entry in patch_load_entries()],
    output:
        f"{TABLES}/patch_load.csv",
    log:
        "results/logs/tables/patch_load.log",
    params:
        entries=patch_load_entries(),
        code=code("gather"),


rule summary:
    input:
        f"{TABLES}/tradeoff.csv",
    output:
        report(f"{TABLES}/summary.csv", caption="../report/summary.rst", category="Tables"),
    log:
        "results/logs/tables/summary.log",
    params:
        code=code("summary"),
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
    log:
        "results/logs/tables/claims.log",
    params:
        cfg={name: plain(task.figures) for name, task in sorted(CONFIG.tasks.items())},
        code=code("claims"),
    script:
        "../scripts/claims.py"
