# Quality and cost on whole splits; one job measures all operating points of a knob. Thresholds are
# parameters, not wildcards: changing them repeats the evaluation and nothing else. Operating points are
# chosen on validation samples and reported on test samples, so both are measured; of the trials of learning
# rates, validation samples alone.
TRIALS = "|".join(name[-DIGEST:] for name in PLAN.trial_folders)  # tell a folder from all others
TRIED = rf"[\w.-]*(?:{TRIALS})"
MEASURED = {"": (tables.EVALUATED, rf"(?!{TRIED}/)[\w.-]+" if TRIALS else r"[\w.-]+")}
if TRIALS:
    MEASURED["_trial"] = (("validation",), TRIED)


for how in EVALUATIONS.values():
    for suffix, (splits, folders) in MEASURED.items():

        rule:
            name:
                f"{how.name}{suffix}"
            input:
                model=f"{FOLDER}/model.safetensors",
                data=evaluated_data(how, splits),
            output:
                **evaluation_outputs(how, splits),
                record=job_record(FOLDER, "evaluate_{knob}"),
            log:
                job_log(FOLDER, "evaluate_{knob}"),
            wildcard_constraints:
                knob="|".join(how.knobs),
                folder=folders,
            threads: RESOURCES.gpu
            resources:
                **GPUS,
                **sized(measurement_of(*splits), RESOURCES.gpu),
            params:
                cfg=measure_options,
                splits=splits,
                measure=how.measure,
                choose=how.choose,
                code=evaluation_code(how),
            script:
                "../scripts/evaluate.py"


rule activity:
    # What sparsity enforcement does to the number of active neurons.
    input:
        model=f"{FOLDER}/model.safetensors",
        data=split_of,
    output:
        f"{FOLDER}/activity/{{split}}.csv",
        record=job_record(FOLDER, "activity_{split}"),
    log:
        job_log(FOLDER, "activity_{split}"),
    threads: RESOURCES.gpu
    resources:
        **GPUS,
        **sized(measurement, RESOURCES.gpu),
    params:
        cfg=lambda w: {"batch_size": task_of(w).eval_batch_size},
        code=model_code("activity"),
    script:
        "../scripts/activity.py"


rule load_maps:
    # Where in images the experts run.
    input:
        model=f"{FOLDER}/model.safetensors",
        data=lambda w: PLAN.data_files(step_of(w).data, ["test"]),
    output:
        tensors=f"{FOLDER}/load_maps/{{knob}}.safetensors",
        table=f"{FOLDER}/load_maps/{{knob}}.csv",
        record=job_record(FOLDER, "load_maps_{knob}"),
    log:
        job_log(FOLDER, "load_maps_{knob}"),
    wildcard_constraints:
        knob="|".join(RULES),
    resources:
        **GPU,
        **sized(measurement),
    params:
        cfg=lambda w: plain(task_of(w).figures.load_maps),
        code=model_code("load_maps"),
    script:
        "../scripts/load_maps.py"


rule token_load:
    # What each token of a few samples runs, at all operating points.
    input:
        model=f"{FOLDER}/model.safetensors",
        data=lambda w: PLAN.data_files(step_of(w).data, ["test"]),
        tokenizer=tokenizer_in(lambda w: step_of(w).data),
    output:
        table=f"{FOLDER}/token_load/{{knob}}.csv",
        record=job_record(FOLDER, "token_load_{knob}"),
    log:
        job_log(FOLDER, "token_load_{knob}"),
    wildcard_constraints:
        knob="|".join(RULES),
    resources:
        **GPU,
        **sized(measurement),
    params:
        cfg=lambda w: tables.token_load_options(PLAN, w.task, w.knob),
        code=model_code("token_load"),
    script:
        "../scripts/token_load.py"
