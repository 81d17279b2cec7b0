# The tables that figures, claims and the report read: first each task's, then of all tasks.


for table, split in {"tradeoff": "test", "validation": "validation"}.items():

    rule:
        # Every operating point; on validation samples, what options are to be chosen by.
        name:
            table if table == "tradeoff" else "validation_tradeoff"
        input:
            paths_of(tables.points, split),
        output:
            f"{TABLES}{{task}}/{table}.csv",
        log:
            f"results/logs/tables/{{suite}}{{task}}/{table}.log",
        localrule: True
        params:
            entries=entries_of(tables.points, split),
            metrics=lambda w: task_of(w).data.metrics,
            code=PLAN.code("tradeoff"),
        script:
            "../scripts/tradeoff.py"


for table in ("layers", "activity", "patch_load", "token_load"):

    rule:
        # Rows of all lineages, one table after the other.
        name:
            f"{table}_table"
        input:
            paths_of(getattr(tables, table)),
        output:
            f"{TABLES}{{task}}/{table}.csv",
        log:
            f"results/logs/tables/{{suite}}{{task}}/{table}.log",
        localrule: True
        params:
            entries=entries_of(getattr(tables, table)),
            code=PLAN.code("gather"),
        script:
            "../scripts/gather.py"


rule summary:
    # What the curves come to and how they differ, with intervals, by the outcomes of all samples.
    input:
        lambda w: tables.outcome_files(PLAN, suite_of(w), w.task),
    output:
        summary=f"{TABLES}{{task}}/summary.csv",
        comparisons=f"{TABLES}{{task}}/comparisons.csv",
    log:
        "results/logs/tables/{suite}{task}/summary.log",
    params:
        entries=entries_of(tables.outcomes),
        cfg=lambda w: claims.statistics_options(PLAN, suite_of(w), w.task),
        code=PLAN.code("summary"),
    script:
        "../scripts/summary.py"


rule all_tasks:
    # One table of all tasks' rows.
    input:
        lambda w: [entry["path"] for entry in tables.of_tasks(PLAN, suite_of(w), w.table)],
    output:
        f"{TABLES}{{table}}.csv",
        page=table_page("{table}", "{suite}{table}", "table"),
    log:
        "results/logs/tables/{suite}{table}.log",
    wildcard_constraints:
        table="tradeoff|summary|comparisons|layers|activity|patch_load|token_load|reference|validation|fairness|wall_times|tuning|neighbours",
    localrule: True
    params:
        entries=lambda w: tables.of_tasks(PLAN, suite_of(w), w.table),
        code=PLAN.code("gather"),
    script:
        "../scripts/gather.py"


rule claims:
    input:
        unpack(lambda w: claims.claim_tables(PLAN, suite_of(w))),
    output:
        f"{TABLES}claims.csv",
        page=table_page("claims", "{suite}claims", "claims"),
    log:
        "results/logs/tables/{suite}claims.log",
    localrule: True
    params:
        cfg=lambda w: claims.claim_options(PLAN, suite_of(w)),
        code=PLAN.claims_code(),
    script:
        "../scripts/claims.py"


rule reference:
    # Text tasks: TF-IDF or a byte-level 5-gram, and the dense models beside it.
    input:
        vendored_files,
        points=paths_of(tables.dense_points),
        about=lambda w: f"{PLAN.data_folder(w.task)}/dataset.json",
    output:
        f"{TABLES}{{task}}/reference.csv",
    log:
        "results/logs/tables/{suite}{task}/reference.log",
    params:
        cfg=lambda w: plain(task_of(w).data),
        entries=entries_of(tables.dense_points),
        code=PLAN.code("reference"),
    script:
        "../scripts/reference.py"


rule neighbours_table:
    # Neighbouring methods: what each needs, and what it keeps.
    input:
        unpack(
            lambda w: {
                name: f"{TABLES}{{task}}/{name}.csv".format(**w)
                for name in ("tradeoff", "summary", "comparisons")
            }
        ),
    output:
        f"{TABLES}{{task}}/neighbours.csv",
    log:
        "results/logs/tables/{suite}{task}/neighbours.log",
    localrule: True
    params:
        entries=entries_of(tables.neighbours),
        dense=next(iter(DENSE_VARIANTS)),
        code=PLAN.code("neighbours"),
    script:
        "../scripts/neighbours.py"


rule fairness:
    # What every method was given.
    input:
        about=lambda w: f"{PLAN.data_folder(w.task)}/dataset.json",
    output:
        "results/tables/{task}/fairness.csv",
    log:
        "results/logs/tables/{task}/fairness.log",
    localrule: True
    params:
        entries=lambda w: tables.fairness(PLAN, w.task),
        code=PLAN.code("fairness"),
    script:
        "../scripts/fairness.py"


rule wall_times:
    # And how long it took, by the records of the jobs; no other table has times.
    input:
        lambda w: tables.job_records(PLAN, w.task),
    output:
        "results/tables/{task}/wall_times.csv",
    log:
        "results/logs/tables/{task}/wall_times.log",
    localrule: True
    params:
        entries=lambda w: tables.wall_times(PLAN, w.task),
        code=PLAN.code("wall_times"),
    script:
        "../scripts/wall_times.py"


rule tuning_table:
    # Every learning rate tried, on validation samples.
    input:
        lambda w: [entry["path"] for entry in tables.tuning(PLAN, w.task)],
    output:
        "results/tables/{task}/tuning.csv",
    log:
        "results/logs/tables/{task}/tuning.log",
    localrule: True
    params:
        entries=lambda w: tables.tuning(PLAN, w.task),
        metric=lambda w: task_of(w).data.metrics[0],
        code=PLAN.code("tuning"),
    script:
        "../scripts/tuning.py"
