# Stage 4: routers that predict which experts a token needs.


rule routers:
    input:
        model=f"{SPLIT}/model.safetensors",
        data=data_files,
    output:
        model=f"{ROUTER}/model.safetensors",
        history=f"{ROUTER}/history.csv",
    log:
        log_of(ROUTER, "routers"),
    benchmark:
        benchmark_of(ROUTER, "routers")
    threads: stage_threads(ROUTER)
    resources:
        gpu=1,
    params:
        cfg=stage_cfg(ROUTER),
        code=code("routers"),
    script:
        "../scripts/routers.py"
