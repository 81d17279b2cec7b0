# Table 1: zero-shot BoolQ at compute budgets, for the tasks that have `boolq`. It needs lm-eval, an
# optional extra: uv run --extra lm-eval snakemake …


rule boolq:
    input:
        unpack(boolq_inputs),
    output:
        "{model}/boolq/{knob}.csv",
    log:
        "{model}/boolq/{knob}.log",
    benchmark:
        "{model}/boolq/{knob}.jsonl"
    wildcard_constraints:
        knob="dense|dynamic_k|top_k|coverage",
    resources:
        gpu=1,
    params:
        cfg=boolq_cfg,
        code=code("boolq"),
    script:
        "../scripts/boolq.py"


if boolq_entries():

    rule table_1:
        input:
            [entry["path"] for entry in boolq_entries()],
        output:
            report("results/tables/boolq.csv", caption="../report/table_1.rst", category="Tables"),
        log:
            "results/logs/tables/boolq.log",
        localrule: True
        params:
            entries=boolq_entries(),
            code=code("gather"),
        script:
            "../scripts/gather.py"
