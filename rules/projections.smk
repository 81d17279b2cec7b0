# Before stage 2, where a variant asks for it: attention projections into MLPs, by imitation.


rule projections:
    input:
        model=f"{SOURCE}/model.safetensors",
        data=data_files,
    output:
        model=f"{PROJECTIONS}/model.safetensors",
        history=f"{PROJECTIONS}/history.csv",
    log:
        log_of(PROJECTIONS, "projections"),
    benchmark:
        benchmark_of(PROJECTIONS, "projections")
    threads: stage_threads(PROJECTIONS)
    resources:
        gpu=1,
    params:
        cfg=stage_cfg(PROJECTIONS),
        code=code("projections"),
    script:
        "../scripts/projections.py"
