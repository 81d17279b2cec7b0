# Fetch or verify a task's dataset and split it once into train, validation and test.


rule dataset:
    input:
        vendored_files,
    output:
        about="results/data/{task}/dataset.json",
        splits=expand(
            "results/data/{{task}}/{part}.safetensors", part=["train", "validation", "test"]
        ),
    log:
        "results/logs/data/{task}.log",
    benchmark:
        "results/benchmarks/jobs/data/{task}.jsonl"
    params:
        cfg=lambda w: plain(CONFIG.tasks[w.task].data),
        code=code("dataset"),
    script:
        "../scripts/dataset.py"
