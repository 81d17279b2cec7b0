# Fetch or verify a task's dataset and split it once into train, validation and test.


rule dataset:
    input:
        vendored_files,
        tokenizer=tokenizer_of,
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


rule tokenizer:
    input:
        vendored_files,
    output:
        "results/data/{task}/tokenizer.json",
    log:
        "results/logs/data/{task}/tokenizer.log",
    benchmark:
        "results/benchmarks/jobs/data/{task}/tokenizer.jsonl"
    params:
        cfg=lambda w: plain(CONFIG.tasks[w.task].data),
        code=code("tokenizer"),
    script:
        "../scripts/tokenizer.py"
