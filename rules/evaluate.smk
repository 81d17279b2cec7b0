# Stage 5: quality and cost on a whole split; one job measures all operating points of a rule.
# Thresholds are parameters, not wildcards: changing them repeats the evaluation and nothing else.


rule evaluate:
    input:
        model="{model}/model.safetensors",
        data=data_of_part,
    output:
        points="{model}/evaluate/{part}/{knob}.csv",
        layers="{model}/evaluate/{part}/{knob}_layers.csv",
    log:
        "{model}/evaluate/{part}/{knob}.log",
    benchmark:
        "{model}/evaluate/{part}/{knob}.jsonl"
    resources:
        gpu=1,
    params:
        cfg=select_cfg,
        code=code("evaluate"),
    script:
        "../scripts/evaluate.py"


rule evaluate_dense:
    input:
        model="{model}/model.safetensors",
        data=data_of_part,
    output:
        points="{model}/evaluate/{part}/dense.csv",
    log:
        "{model}/evaluate/{part}/dense.log",
    resources:
        gpu=1,
    params:
        cfg=lambda w: {"batch_size": CONFIG.tasks[w.model.split("/")[2]].eval_batch_size},
        code=code("evaluate_dense"),
    script:
        "../scripts/evaluate_dense.py"


rule load_maps:
    input:
        model=f"{ROUTER}/model.safetensors",
        data=data_files,
    output:
        tensors=f"{ROUTER}/load_maps/{{knob}}.safetensors",
        table=f"{ROUTER}/load_maps/{{knob}}.csv",
    log:
        log_of(ROUTER, "load_maps_{knob}"),
    resources:
        gpu=1,
    params:
        cfg=lambda w: plain(CONFIG.tasks[w.task].figures.load_maps),
        code=code("load_maps"),
    script:
        "../scripts/load_maps.py"
