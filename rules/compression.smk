# Compressed models that are converted in the dense model's place, and quantised weights (claim C10).


rule prune:
    input:
        model=f"{DENSE}/model.safetensors",
        data=data_files,
    output:
        model=f"{PRUNE}/model.safetensors",
        history=f"{PRUNE}/history.csv",
    log:
        log_of(PRUNE, "prune"),
    benchmark:
        benchmark_of(PRUNE, "prune")
    threads: stage_threads(PRUNE)
    resources:
        gpu=1,
    params:
        cfg=stage_cfg(PRUNE),
        code=code("prune"),
    script:
        "../scripts/prune.py"


rule distill:
    input:
        model=f"{DENSE}/model.safetensors",
        data=data_files,
    output:
        model=f"{DISTILL}/model.safetensors",
        history=f"{DISTILL}/history.csv",
    log:
        log_of(DISTILL, "distill"),
    benchmark:
        benchmark_of(DISTILL, "distill")
    threads: stage_threads(DISTILL)
    resources:
        gpu=1,
    params:
        cfg=stage_cfg(DISTILL),
        code=code("distill"),
    script:
        "../scripts/distill.py"


rule quantize:
    input:
        model="results/models/{parent}/model.safetensors",
    output:
        model=f"{QUANTIZE}/model.safetensors",
    log:
        log_of(QUANTIZE, "quantize"),
    benchmark:
        benchmark_of(QUANTIZE, "quantize")
    params:
        cfg=stage_cfg(QUANTIZE),
        code=code("quantize"),
    script:
        "../scripts/quantize.py"
