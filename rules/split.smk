# Stage 3: every FFN into experts of equal size.


rule split:
    input:
        model=f"{SPARSIFY}/model.safetensors",
    output:
        model=f"{SPLIT}/model.safetensors",
    log:
        log_of(SPLIT, "split"),
    benchmark:
        benchmark_of(SPLIT, "split")
    params:
        cfg=stage_cfg(SPLIT),
        code=code("split"),
    script:
        "../scripts/split.py"
