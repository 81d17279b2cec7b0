# The stages that make models of models, a rule for each record of the table.


for stage in STAGES.values():
    if stage.trains:

        rule:
            name:
                stage.name
            input:
                unpack(stage_inputs),
            output:
                model=f"{FOLDER}/model.safetensors",
                history=f"{FOLDER}/history.csv",
                lineage=f"{FOLDER}/lineage.yaml",
                record=job_record(FOLDER, stage.name),
            log:
                job_log(FOLDER, stage.name),
            wildcard_constraints:
                folder=rf"{stage.name}-[\w.-]+",
            threads: lambda w: options(w)["threads"] * RESOURCES.gpu
            resources:
                **GPUS,
                **MACHINES,
                **sized(training, RESOURCES.gpu),
                cpus_per_task=lambda w: RESOURCES.gpu
                * (options(w)["threads"] + options(w)["workers"]),
            params:
                cfg=options,
                lineage=lambda w: lineage_of(step_of(w)),
                code=lambda w: PLAN.stage_code(step_of(w)),
            script:
                "../scripts/train.py"

    else:

        rule:
            name:
                stage.name
            input:
                unpack(stage_inputs) if stage.calibrates else unpack(parent_of),
            output:
                model=f"{FOLDER}/model.safetensors",
                lineage=f"{FOLDER}/lineage.yaml",
                record=job_record(FOLDER, stage.name),
            log:
                job_log(FOLDER, stage.name),
            wildcard_constraints:
                folder=rf"{stage.name}-[\w.-]+",
            threads: RESOURCES.gpu if stage.calibrates else 1
            resources:
                **(
                    GPUS | sized(calibration, RESOURCES.gpu)
                    if stage.calibrates
                    else sized(conversion)
                ),
            params:
                cfg=options,
                lineage=lambda w: lineage_of(step_of(w)),
                code=lambda w: PLAN.stage_code(step_of(w)),
            script:
                "../scripts/convert.py"


rule models:
    # Which folder holds what.
    output:
        "results/models.csv",
    log:
        "results/logs/models.log",
    localrule: True
    params:
        rows=tables.models(PLAN),
        code=PLAN.code("models"),
    script:
        "../scripts/models.py"


for name, removes in {"clean_unused": False, "remove_unused": True}.items():

    rule:
        # Lists, or removes, the folders that no variant of the configuration leads to.
        name:
            name
        log:
            f"results/logs/{name}.log",
        localrule: True
        params:
            used=[*PLAN.steps, *map(PLAN.data_folder, PLAN.config.tasks)],
            removes=removes,
        script:
            "../scripts/unused.py"


rule verify:
    # Says which results are stale, foreign or damaged.
    log:
        "results/logs/verify.log",
    localrule: True
    script:
        "../scripts/verify.py"
