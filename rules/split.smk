# Stage 3: every FFN into experts of equal size.


rule split:
    input:
        model=SPARSIFY + "/model.safetensors",
    output:
        model=SPLIT + "/model.safetensors",
    params:
        cfg=stage_cfg(SPLIT),
        code=code("split"),
    log:
        log_of(SPLIT, "split"),
    benchmark:
        benchmark_of(SPLIT, "split")
    script:
        "../scripts/split.py"
