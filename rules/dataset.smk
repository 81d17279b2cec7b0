# Fetch or verify a task's dataset and split it once into train, validation and test.


def vendored_files(wildcards):
    """Files in the repository that a vendored dataset is read from."""
    kind, _, name = task_of(wildcards).data.source.partition(":")
    files = (ROOT / "resources" / name).glob("*.parquet") if kind == "vendored" else []
    return sorted(map(str, files))


def tokenizer_of(wildcards):
    """What cuts a task's texts into tokens; images need none."""
    images = task_of(wildcards).data.kind == "images"
    return [] if images else f"{DATA}/tokenizer.json".format(**wildcards)


def data_options(wildcards):
    """The options of the dataset that a path names."""
    return plain(PLAN.dataset(DATA.format(**wildcards)))


rule dataset:
    input:
        vendored_files,
        tokenizer=tokenizer_of,
    output:
        about=f"{DATA}/dataset.json",
        splits=expand(f"{DATA}/{{split}}.safetensors", split=SPLITS, allow_missing=True),
    log:
        job_log(DATA, "dataset"),
    benchmark:
        job_record(DATA, "dataset")
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
    log:
        job_log(DATA, "tokenizer"),
    benchmark:
        job_record(DATA, "tokenizer")
    params:
        cfg=data_options,
        code=PLAN.code("tokenizer"),
    script:
        "../scripts/tokenizer.py"
