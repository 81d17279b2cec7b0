# The tables that figures, claims and the report read: first each task's, then of all tasks.


rule tradeoff:
    input:
        lambda w: [entry["path"] for entry in point_entries(suite_of(w), w.task, "test")],
    output:
        f"{TABLES}{{task}}/tradeoff.csv",
    log:
        "results/logs/tables/{suite}{task}/tradeoff.log",
    params:
        entries=lambda w: point_entries(suite_of(w), w.task, "test"),
        metrics=lambda w: CONFIG.tasks[w.task].data.metrics,
        code=code("tradeoff"),
    script:
        "../scripts/tradeoff.py"


use rule tradeoff as validation_tradeoff with:
    # On validation samples: what options are to be chosen by.
    input:
        lambda w: [entry["path"] for entry in point_entries(suite_of(w), w.task, "validation")],
    output:
        f"{TABLES}{{task}}/validation.csv",
    log:
        "results/logs/tables/{suite}{task}/validation.log",
    params:
        entries=lambda w: point_entries(suite_of(w), w.task, "validation"),
        metrics=lambda w: CONFIG.tasks[w.task].data.metrics,
        code=code("tradeoff"),


rule layers:
    input:
        lambda w: [entry["path"] for entry in layer_entries(suite_of(w), w.task)],
    output:
        f"{TABLES}{{task}}/layers.csv",
    log:
        "results/logs/tables/{suite}{task}/layers.log",
    params:
        entries=lambda w: layer_entries(suite_of(w), w.task),
        code=code("gather"),
    script:
        "../scripts/gather.py"


use rule layers as active_neurons with:
    input:
        lambda w: [entry["path"] for entry in activity_entries(suite_of(w), w.task)],
    output:
        f"{TABLES}{{task}}/activity.csv",
    log:
        "results/logs/tables/{suite}{task}/activity.log",
    params:
        entries=lambda w: activity_entries(suite_of(w), w.task),
        code=code("gather"),


use rule layers as patch_load with:
    input:
        lambda w: [entry["path"] for entry in patch_load_entries(suite_of(w), w.task)],
    output:
        f"{TABLES}{{task}}/patch_load.csv",
    log:
        "results/logs/tables/{suite}{task}/patch_load.log",
    params:
        entries=lambda w: patch_load_entries(suite_of(w), w.task),
        code=code("gather"),


rule summary:
    input:
        f"{TABLES}{{task}}/tradeoff.csv",
    output:
        f"{TABLES}{{task}}/summary.csv",
    log:
        "results/logs/tables/{suite}{task}/summary.log",
    params:
        code=code("summary"),
    script:
        "../scripts/summary.py"


use rule layers as all_tasks with:
    # One table of all tasks' rows.
    input:
        lambda w: [entry["path"] for entry in task_entries(suite_of(w), w.table)],
    output:
        report(f"{TABLES}{{table}}.csv", caption="../report/table.rst", category="Tables"),
    log:
        "results/logs/tables/{suite}{table}.log",
    params:
        entries=lambda w: task_entries(suite_of(w), w.table),
        code=code("gather"),


rule claims:
    input:
        unpack(claim_tables),
    output:
        report(f"{TABLES}claims.csv", caption="../report/claims.rst", category="Tables"),
    log:
        "results/logs/tables/{suite}claims.log",
    params:
        cfg=claims_cfg,
        code=code("claims"),
    script:
        "../scripts/claims.py"


rule reference:
    # Text tasks: TF-IDF or a byte-level 5-gram, and the dense models beside it.
    input:
        vendored_files,
        points=lambda w: [entry["path"] for entry in dense_entries(w.task)],
        about="results/data/{task}/dataset.json",
    output:
        f"{TABLES}{{task}}/reference.csv",
    log:
        "results/logs/tables/{suite}{task}/reference.log",
    params:
        cfg=lambda w: plain(CONFIG.tasks[w.task].data),
        entries=lambda w: dense_entries(w.task),
        code=code("reference"),
    script:
        "../scripts/reference.py"


rule fairness:
    # What every method was given; read from the records of the jobs.
    input:
        fairness_inputs,
        about="results/data/{task}/dataset.json",
    output:
        "results/tables/{task}/fairness.csv",
    log:
        "results/logs/tables/{task}/fairness.log",
    params:
        entries=lambda w: list(fairness_entries(w.task)),
        code=code("fairness"),
    script:
        "../scripts/fairness.py"


rule tuning_table:
    # Every learning rate tried, on validation samples.
    input:
        lambda w: [entry["path"] for entry in tuning_entries(w.task)],
    output:
        "results/tables/{task}/tuning.csv",
    log:
        "results/logs/tables/{task}/tuning.log",
    params:
        entries=lambda w: tuning_entries(w.task),
        metric=lambda w: CONFIG.tasks[w.task].data.metrics[0],
        code=code("tuning"),
    script:
        "../scripts/tuning.py"
