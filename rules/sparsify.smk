# Stage 2: sparsity enforcement, and what it does to the number of active neurons.


rule sparsify:
    input:
        model=DENSE + "/model.safetensors",
        data=data_files,
    output:
        model=SPARSIFY + "/model.safetensors",
        history=SPARSIFY + "/history.csv",
    params:
        cfg=stage_cfg(SPARSIFY),
        code=code("sparsify"),
    threads: stage_threads(SPARSIFY)
    resources:
        gpu=1,
    log:
        log_of(SPARSIFY, "sparsify"),
    benchmark:
        benchmark_of(SPARSIFY, "sparsify")
    script:
        "../scripts/sparsify.py"


rule activity:
    input:
        model=SPARSIFY + "/model.safetensors",
        data=data_files,
    output:
        SPARSIFY + "/activity/{part}.csv",
    params:
        cfg=lambda w: {"batch_size": CONFIG.tasks[w.task].eval_batch_size},
        code=code("activity"),
    resources:
        gpu=1,
    log:
        log_of(SPARSIFY, "activity_{part}"),
    script:
        "../scripts/activity.py"
