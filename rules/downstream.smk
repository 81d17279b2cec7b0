# Table 1: zero-shot BoolQ at compute budgets, for the tasks that have `boolq`. It needs lm-eval, an
# optional extra: uv run --extra lm-eval snakemake …


rule boolq:
    input:
        unpack(lambda w: tables.boolq_inputs(PLAN, step_of(w), w.knob)),
    output:
        f"{FOLDER}/boolq/{{knob}}.csv",
        record=job_record(FOLDER, "boolq_{knob}"),
    log:
        job_log(FOLDER, "boolq_{knob}"),
    resources:
        **GPU,
        **sized(measurement),
    params:
        cfg=lambda w: tables.boolq_options(PLAN, step_of(w), w.knob),
        code=model_code("boolq"),
    script:
        "../scripts/boolq.py"


if tables.boolq(PLAN):

    rule table_1:
        input:
            [entry["path"] for entry in tables.boolq(PLAN)],
        output:
            "results/tables/boolq.csv",
            page=table_page("boolq", "boolq", "table_1"),
        log:
            "results/logs/tables/boolq.log",
        localrule: True
        params:
            entries=tables.boolq(PLAN),
            code=PLAN.code("gather"),
        script:
            "../scripts/gather.py"
