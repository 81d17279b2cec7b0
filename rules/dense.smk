# Stage 1: the dense model and its fair reference, fine-tuned for as many steps as a conversion.


rule dense:
    input:
        data=data_files,
    output:
        model=DENSE + "/model.safetensors",
        history=DENSE + "/history.csv",
    params:
        cfg=stage_cfg(DENSE),
        model=lambda w: plain(CONFIG.tasks[w.task].model),
        code=code("dense"),
    threads: stage_threads(DENSE)
    resources:
        gpu=1,
    log:
        log_of(DENSE, "dense"),
    benchmark:
        benchmark_of(DENSE, "dense")
    script:
        "../scripts/dense.py"


rule finetune:
    input:
        model=DENSE + "/model.safetensors",
        data=data_files,
    output:
        model=FINETUNE + "/model.safetensors",
        history=FINETUNE + "/history.csv",
    params:
        cfg=stage_cfg(FINETUNE),
        code=code("finetune"),
    threads: stage_threads(FINETUNE)
    resources:
        gpu=1,
    log:
        log_of(FINETUNE, "finetune"),
    benchmark:
        benchmark_of(FINETUNE, "finetune")
    script:
        "../scripts/finetune.py"
