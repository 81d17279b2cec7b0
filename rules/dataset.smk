# Fetch or verify a task's dataset and split it once into train, validation and test.


def vendored_files(wildcards):
    kind, _, name = CONFIG.tasks[wildcards.task].data.source.partition(":")
    return sorted(map(str, (ROOT / "resources" / name).glob("*.parquet"))) if kind == "vendored" else []


rule dataset:
    input:
        vendored_files,
    output:
        about="results/data/{task}/dataset.json",
        splits=expand(
            "results/data/{{task}}/{part}.safetensors", part=["train", "validation", "test"]
        ),
    params:
        cfg=lambda w: plain(CONFIG.tasks[w.task].data),
        code=code("dataset"),
    log:
        "results/logs/data/{task}.log",
    benchmark:
        "results/benchmarks/jobs/data/{task}.jsonl"
    script:
        "../scripts/dataset.py"
