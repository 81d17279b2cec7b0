# Baselines that train the dense model otherwise: early exits (ZTW) and halting tokens (A-ViT).
# MoEfication is a conversion, on the rules of the stages.


rule ztw:
    input:
        model=f"{DENSE}/model.safetensors",
        data=data_files,
    output:
        model=f"{ZTW}/model.safetensors",
        history=f"{ZTW}/history.csv",
    log:
        log_of(ZTW, "ztw"),
    benchmark:
        benchmark_of(ZTW, "ztw")
    threads: stage_threads(ZTW)
    resources:
        gpu=1,
    params:
        cfg=stage_cfg(ZTW),
        code=code("ztw"),
    script:
        "../scripts/ztw.py"


rule evaluate_exits:
    input:
        model=f"{ZTW}/model.safetensors",
        data=data_of_part,
    output:
        points=f"{ZTW}/evaluate/{{part}}/confidence.csv",
    log:
        log_of(ZTW, "evaluate_exits_{part}"),
    benchmark:
        benchmark_of(ZTW, "evaluate_exits_{part}")
    resources:
        gpu=1,
    params:
        cfg=lambda w: {
            "batch_size": CONFIG.tasks[w.task].eval_batch_size,
            "values": CONFIG.tasks[w.task].select.confidence,
        },
        code=code("evaluate_exits"),
    script:
        "../scripts/evaluate_exits.py"


rule avit:
    input:
        model=f"{DENSE}/model.safetensors",
        data=data_files,
    output:
        model=f"{AVIT}/model.safetensors",
        history=f"{AVIT}/history.csv",
    log:
        log_of(AVIT, "avit"),
    benchmark:
        benchmark_of(AVIT, "avit")
    threads: stage_threads(AVIT)
    resources:
        gpu=1,
    params:
        cfg=stage_cfg(AVIT),
        code=code("avit"),
    script:
        "../scripts/avit.py"


rule evaluate_halting:
    input:
        model=f"{AVIT}/model.safetensors",
        data=data_of_part,
    output:
        points=f"{AVIT}/evaluate/{{part}}/depth.csv",
        layers=f"{AVIT}/evaluate/{{part}}/depth_layers.csv",
    log:
        log_of(AVIT, "evaluate_halting_{part}"),
    benchmark:
        benchmark_of(AVIT, "evaluate_halting_{part}")
    resources:
        gpu=1,
    params:
        cfg=lambda w: {"batch_size": CONFIG.tasks[w.task].eval_batch_size},
        code=code("evaluate_halting"),
    script:
        "../scripts/evaluate_halting.py"
