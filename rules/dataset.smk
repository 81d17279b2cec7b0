# Fetch or verify a task's dataset and split it once into train, validation and test.


rule dataset:
    input:
        vendored_files,
        tokenizer=tokenizer_in(lambda w: DATA.format(**w)),
    output:
        about=f"{DATA}/dataset.json",
        splits=expand(f"{DATA}/{{split}}.safetensors", split=SPLITS, allow_missing=True),
        record=job_record(DATA, "dataset"),
    log:
        job_log(DATA, "dataset"),
    params:
        cfg=data_options,
        code=PLAN.code("dataset"),
    script:
        "../scripts/dataset.py"


rule tokenizer:
    input:
        vendored_files,
    output:
        f"{DATA}/tokenizer.json",
        record=job_record(DATA, "tokenizer"),
    log:
        job_log(DATA, "tokenizer"),
    params:
        cfg=data_options,
        code=PLAN.code("tokenizer"),
    script:
        "../scripts/tokenizer.py"
