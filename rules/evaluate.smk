# Stage 5: quality and cost on a whole split; one job measures all operating points of a rule.
# Thresholds are parameters, not wildcards: changing them repeats the evaluation and nothing else.


def select_cfg(wildcards):
    """Operating points of the rule that a path names."""
    task = CONFIG.tasks[wildcards.model.split("/")[2]]
    return {
        "batch_size": task.eval_batch_size,
        "values": getattr(task.select, wildcards.knob),
    }


def data_of_model(wildcards):
    task = wildcards.model.split("/")[2]
    return [f"results/data/{task}/dataset.json", f"results/data/{task}/{wildcards.part}.safetensors"]


rule evaluate:
    input:
        model="{model}/model.safetensors",
        data=data_of_model,
    output:
        points="{model}/evaluate/{part}/{knob}.csv",
        layers="{model}/evaluate/{part}/{knob}_layers.csv",
    params:
        cfg=select_cfg,
        code=code("evaluate"),
    resources:
        gpu=1,
    log:
        "{model}/evaluate/{part}/{knob}.log",
    benchmark:
        "{model}/evaluate/{part}/{knob}.jsonl"
    script:
        "../scripts/evaluate.py"


rule evaluate_dense:
    input:
        model="{model}/model.safetensors",
        data=data_of_model,
    output:
        points="{model}/evaluate/{part}/dense.csv",
    params:
        cfg=lambda w: {"batch_size": CONFIG.tasks[w.model.split("/")[2]].eval_batch_size},
        code=code("evaluate_dense"),
    resources:
        gpu=1,
    log:
        "{model}/evaluate/{part}/dense.log",
    script:
        "../scripts/evaluate_dense.py"


rule load_maps:
    input:
        model=ROUTER + "/model.safetensors",
        data=data_files,
    output:
        tensors=ROUTER + "/load_maps/{knob}.safetensors",
        table=ROUTER + "/load_maps/{knob}.csv",
    params:
        cfg=lambda w: plain(CONFIG.tasks[w.task].figures.load_maps),
        code=code("load_maps"),
    resources:
        gpu=1,
    log:
        log_of(ROUTER, "load_maps_{knob}"),
    script:
        "../scripts/load_maps.py"
