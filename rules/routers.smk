# Stage 4: routers that predict which experts a token needs.


rule routers:
    input:
        model=SPLIT + "/model.safetensors",
        data=data_files,
    output:
        model=ROUTER + "/model.safetensors",
        history=ROUTER + "/history.csv",
    params:
        cfg=stage_cfg(ROUTER),
        code=code("routers"),
    threads: stage_threads(ROUTER)
    resources:
        gpu=1,
    log:
        log_of(ROUTER, "routers"),
    benchmark:
        benchmark_of(ROUTER, "routers")
    script:
        "../scripts/routers.py"
