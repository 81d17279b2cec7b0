# Stage 2: sparsity enforcement, and what it does to the number of active neurons.


rule sparsify:
    input:
        model=f"{BASE}/model.safetensors",
        data=data_files,
    output:
        model=f"{SPARSIFY}/model.safetensors",
        history=f"{SPARSIFY}/history.csv",
    log:
        log_of(SPARSIFY, "sparsify"),
    benchmark:
        benchmark_of(SPARSIFY, "sparsify")
    threads: stage_threads(SPARSIFY)
    resources:
        gpu=1,
    params:
        cfg=stage_cfg(SPARSIFY),
        code=code("sparsify"),
    script:
        "../scripts/sparsify.py"


rule activity:
    input:
        model=f"{SPARSIFY}/model.safetensors",
        data=data_files,
    output:
        f"{SPARSIFY}/activity/{{part}}.csv",
    log:
        log_of(SPARSIFY, "activity_{part}"),
    resources:
        gpu=1,
    params:
        cfg=lambda w: {"batch_size": CONFIG.tasks[w.task].eval_batch_size},
        code=code("activity"),
    script:
        "../scripts/activity.py"
