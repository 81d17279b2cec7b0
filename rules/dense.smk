# Stage 1: the dense model and its fair reference, fine-tuned for as many steps as a conversion.


rule dense:
    input:
        data=data_files,
    output:
        model=f"{DENSE}/model.safetensors",
        history=f"{DENSE}/history.csv",
    log:
        log_of(DENSE, "dense"),
    benchmark:
        benchmark_of(DENSE, "dense")
    threads: stage_threads(DENSE)
    resources:
        gpu=1,
    params:
        cfg=stage_cfg(DENSE),
        model=lambda w: plain(CONFIG.tasks[w.task].model),
        code=code("dense"),
    script:
        "../scripts/dense.py"


rule finetune:
    input:
        model=f"{SOURCE}/model.safetensors",
        data=data_files,
    output:
        model=f"{FINETUNE}/model.safetensors",
        history=f"{FINETUNE}/history.csv",
    log:
        log_of(FINETUNE, "finetune"),
    benchmark:
        benchmark_of(FINETUNE, "finetune")
    threads: stage_threads(FINETUNE)
    resources:
        gpu=1,
    params:
        cfg=stage_cfg(FINETUNE),
        code=code("finetune"),
    script:
        "../scripts/finetune.py"
