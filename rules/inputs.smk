# Which files and options the evaluations, tables and figures read.

# Cost–quality figures of a task: which of its `figures` lists they compare, and their titles.
TRADEOFF_FIGURES = {
    "figure_4": ("tradeoff", "Cost against quality"),
    "figure_2a": ("base_sparsity", "Sparsity of the base model"),
    "figure_2c": ("selection_rules", "Selection rules"),
    "figure_9a": ("phases", "Each phase added in turn"),
    "figure_9b": ("sparsity_levels", "Sparsity level"),
    "figure_9c": ("activations", "ReLU and GELU bases"),
    "figure_9d": ("expert_sizes", "Size of the experts"),
    "figure_6": ("pruned", "Conversion of a pruned model"),
    "figure_7": ("quantized", "Conversion with quantised weights"),
    "figure_12": ("distilled", "Conversion of a distilled model"),
    "ablation_routers": ("routers", "Regression and classification routers"),
    "ablation_splits": ("splits", "Split into experts"),
    "ablation_router_widths": ("router_widths", "Width of the routers"),
}
LAYER_FIGURES = {"figure_8a": "layers", "figure_16": "layer_thresholds"}
OTHER_FIGURES = {"figure_2b": "active_neurons", "figure_8b": "load_maps"}
ENDINGS = ("png", "pdf")


def vendored_files(wildcards):
    """Files in the repository that a vendored dataset is read from."""
    kind, _, name = CONFIG.tasks[wildcards.task].data.source.partition(":")
    return (
        sorted(map(str, (ROOT / "resources" / name).glob("*.parquet")))
        if kind == "vendored"
        else []
    )


def tokenizer_of(wildcards):
    """What cuts a task's texts into tokens; images need none."""
    images = CONFIG.tasks[wildcards.task].data.kind == "images"
    return [] if images else f"results/data/{wildcards.task}/tokenizer.json"


def select_cfg(wildcards):
    """Operating points of the rule that a path names."""
    task = CONFIG.tasks[wildcards.model.split("/")[2]]
    return {
        "batch_size": task.eval_batch_size,
        "values": getattr(task.select, wildcards.knob),
    }


def data_of_part(wildcards):
    """The one split that an evaluation reads; the path names the task, or the model of one."""
    task = wildcards.get("task") or wildcards.model.split("/")[2]
    return [
        f"results/data/{task}/{name}" for name in ("dataset.json", f"{wildcards.part}.safetensors")
    ]


def labels_of(lineage):
    """Leading columns of a lineage's rows."""
    return {
        "task": lineage.task,
        "method": lineage.method,
        "variant": lineage.variant,
        "seed": lineage.seed,
    }


def dataset_of(task):
    """What a task's points are of: the leading columns of its trade-off."""
    cfg = CONFIG.tasks[task]
    return {"model": cfg.model.name, "dataset": cfg.data.source.partition(":")[2]}


def point_entries(suite, task, part):
    """Every operating-point table of a task, with what its rows belong to."""
    return [
        {"path": str(x.evaluation(part))} | dataset_of(task) | labels_of(x)
        for x in LINEAGES[suite]
        if x.task == task
    ]


def dense_entries(task):
    """The dense models' test tables of a task."""
    return [
        {"path": str(x.evaluation("test"))} | labels_of(x)
        for x in LINEAGES["main"]
        if x.task == task and x.method == "dense"
    ]


def conversions(suite, task):
    """A task's lineages that lead to experts."""
    return [x for x in LINEAGES[suite] if x.task == task and x.method in ("d2dmoe", "moefication")]


def layer_entries(suite, task):
    """Every table of executed experts per layer of a task."""
    return [
        {"path": str(x.evaluation("test")).replace(".csv", "_layers.csv")} | labels_of(x)
        for x in conversions(suite, task)
    ]


def activity_entries(suite, task):
    """Every histogram of active neurons of a task."""
    return [
        {"path": f"{x.folder_of('sparsify')}/activity/test.csv"} | labels_of(x)
        for x in conversions(suite, task)
    ]


def fairness_entries(task):
    """What each training of a task had, beyond the dense model."""
    cfg = CONFIG.tasks[task]
    for x in LINEAGES["main"]:
        if x.task == task and len(x.steps) > 1:
            rate = cfg.rate(x.variant)
            about = {"lr": rate, "rates": cfg.tuning.get(x.variant, [rate])}
            about |= {"about": f"results/data/{task}/dataset.json"}
            yield labels_of(x) | about | {"stages": [step_entry(step) for step in x.steps[1:]]}


def step_entry(step):
    """What a stage was given, and the record of its job."""
    cfg, job = plain(step.cfg), "routers" if step.stage == "router" else step.stage
    given = {"epochs": cfg.get("epochs", 0.0), "batch_size": cfg.get("batch_size", 1)}
    return given | {"stage": step.stage, "benchmark": benchmark_of(str(step.folder), job)}


def fairness_inputs(wildcards):
    """The records of all jobs that the table of fairness counts."""
    entries = list(fairness_entries(wildcards.task))
    return sorted({stage["benchmark"] for entry in entries for stage in entry["stages"]})


def tuning_entries(task):
    """The validation points of every learning rate tried of a task."""
    cfg = CONFIG.tasks[task]
    return [
        {"path": str(x.evaluation("validation")), "lr": rate, "chosen": rate == cfg.rate(x.variant)}
        | dataset_of(task)
        | labels_of(x)
        for rate, x in TRIALS
        if x.task == task
    ]


def load_map_lineage(suite, task):
    """The variant whose load maps are drawn, of the first seed."""
    wanted = (task, CONFIG.tasks[task].figures_of(suite).load_maps.variant, CONFIG.seeds[0])
    return next(x for x in LINEAGES[suite] if (x.task, x.variant, x.seed) == wanted)


def patch_load_entries(suite, task):
    """The table of load per patch."""
    x = load_map_lineage(suite, task)
    return [{"path": f"{x.folder}/load_maps/{x.rule}.csv"} | labels_of(x)]


def tasks_of(suite):
    """The tasks that have a part in a suite."""
    return [task for task in CONFIG.tasks if CONFIG.tasks[task].variants_of(suite)]


def task_tables(suite, task):
    """Names of a task's tables."""
    cfg = CONFIG.tasks[task]
    names = ["tradeoff", "summary", "layers", "activity"]
    if cfg.figures_of(suite).load_maps:
        names.append("patch_load")
    small = cfg.data.kind != "images" and not getattr(cfg.data, "streaming", False)
    if suite == "main" and small:  # enough to count words, or bytes
        names.append("reference")
    if suite == "main":
        names.append("fairness")
    return names


def task_entries(suite, table):
    """A table of every task that has one."""
    if table == "tuning":
        with_it = [x for x in CONFIG.tasks if CONFIG.tasks[x].tuning]
    else:
        with_it = [x for x in tasks_of(suite) if table in [*task_tables(suite, x), "validation"]]
    folder = TABLES.format(suite=folder_of(suite))
    return [{"path": f"{folder}{task}/{table}.csv"} for task in with_it]


def boolq_lineages():
    """The lineages of table 1: dense models and chosen variants of the tasks that have `boolq`."""
    for x in LINEAGES["main"]:
        boolq = CONFIG.tasks[x.task].boolq
        if boolq and (x.method == "dense" or x.variant in boolq.variants):
            yield x


def boolq_entries():
    """Every table of BoolQ, with what its rows belong to."""
    return [{"path": f"{x.folder}/boolq/{x.rule}.csv"} | labels_of(x) for x in boolq_lineages()]


def boolq_inputs(wildcards):
    """What BoolQ at compute budgets reads: a model, its operating points, and the questions."""
    task = wildcards.model.split("/")[2]
    dense = Path(*Path(wildcards.model).parts[:6])  # as of DENSE
    kind, _, name = CONFIG.tasks[task].boolq.source.partition(":")
    files = ("dataset.json", "validation.safetensors")
    return {
        "model": f"{wildcards.model}/model.safetensors",
        "tokenizer": f"results/data/{task}/tokenizer.json",
        "points": f"{wildcards.model}/evaluate/validation/{wildcards.knob}.csv",
        "dense": f"{dense}/evaluate/validation/dense.csv",
        "data": [f"results/data/{task}/{file}" for file in files],
        "questions": name if kind == "path" else [],
    }


def boolq_cfg(wildcards):
    """Budgets and questions; a dense model has its own cost only."""
    task = CONFIG.tasks[wildcards.model.split("/")[2]]
    return {
        "batch_size": task.eval_batch_size,
        "budgets": [1.0] if wildcards.knob == "dense" else task.boolq.budgets,
        "limit": task.boolq.limit,
        "source": task.boolq.source,
    }


def claim_tables(wildcards):
    """What a suite's claims are decided by."""
    suite = suite_of(wildcards)
    names = {name for task in tasks_of(suite) for name in task_tables(suite, task)}
    names -= {"summary", "reference", "fairness"}
    return {name: f"{TABLES.format(**wildcards)}{name}.csv" for name in sorted(names)}


def with_projections(suite, task):
    """The variants whose attention projections are converted."""
    cfg = CONFIG.tasks[task]
    names = cfg.variants_of(suite)
    return [x for x in names if getattr(cfg.all_variants[x], "projections", None) is not None]


def compressed_bases(suite, task):
    """By compressed model: the variant that converts it, and the models that it stands beside."""
    cfg = CONFIG.tasks[task]
    variants = {name: cfg.all_variants[name] for name in cfg.variants_of(suite)}
    d2dmoe = {name: x for name, x in variants.items() if x.method == "d2dmoe"}
    found = {}
    for base in cfg.bases_of(suite):
        converted = [name for name, x in d2dmoe.items() if x.base == base]
        found |= {
            base: {"converted": x, "references": [base, f"{base}{FINETUNED}"]} for x in converted
        }
    quantized = [name for name, x in variants.items() if x.method == "quantized"]
    for name in quantized:
        converted = [x for x in d2dmoe if d2dmoe[x].quantize == variants[name].quantize]
        found |= {name: {"converted": x, "references": [name]} for x in converted}
    return found


def drawn_elsewhere(suite, task):
    """By other suite: the figures that it draws of a task."""
    others = {other: CONFIG.tasks[task].figures_of(other) for other in SUITES if other != suite}
    return {
        other: sorted(key for key, value in plain(figures).items() if value)
        for other, figures in others.items()
        if figures
    }


def claims_cfg(wildcards):
    """Which variants the claims compare, by task."""
    suite = suite_of(wildcards)
    return {
        task: {
            "bases": compressed_bases(suite, task),
            "elsewhere": drawn_elsewhere(suite, task),
            "figures": plain(CONFIG.tasks[task].figures_of(suite)),
            "metric": CONFIG.tasks[task].data.metrics[0],
            "projections": with_projections(suite, task),
        }
        for task in sorted(tasks_of(suite))
    }


def task_figures(suite, task):
    """Names of a task's figures: those that its configuration describes."""
    keys = {name: key for name, (key, _) in TRADEOFF_FIGURES.items()}
    keys |= LAYER_FIGURES | OTHER_FIGURES
    figures = CONFIG.tasks[task].figures_of(suite)
    return [name for name, key in keys.items() if getattr(figures, key)]


def task_results(suite, task):
    """All tables and figures of one task: its own target."""
    folders = {"suite": folder_of(suite)}
    tables = [f"{TABLES}{task}/{name}.csv" for name in task_tables(suite, task)]
    names = task_figures(suite, task)
    figures = [f"{FIGURES}{task}/{name}.{end}" for name in names for end in ENDINGS]
    return [path.format(**folders) for path in tables + figures]


def suite_results(suite):
    """All tables and figures of a suite."""
    tasks = tasks_of(suite)
    names = {name for task in tasks for name in task_tables(suite, task)} | {"claims"}
    results = [f"{TABLES}{name}.csv".format(suite=folder_of(suite)) for name in sorted(names)]
    return results + [path for task in tasks for path in task_results(suite, task)]


def all_results():
    """All that `snakemake all` makes."""
    results = ["results/tables/boolq.csv"] if boolq_entries() else []
    names = ("figure_3", "figure_4", "figure_10")
    results += [f"results/figures/{name}.{end}" for name in names for end in ENDINGS]
    return suite_results("main") + results


def figure_png(folder, name):
    """The PNG of a figure, with its caption in the HTML report."""
    category = "Figures: {task}" if "{task}" in folder else "Figures"
    return report(f"{folder}{name}.png", caption=f"../report/{name}.rst", category=category)


def panel_of(suite, task, key, variants=None):
    """What a panel shows: a task's variants and their names in the legend."""
    cfg, figures = CONFIG.tasks[task], CONFIG.tasks[task].figures_of(suite)
    variants = variants or getattr(figures, key)
    labels = {name: cfg.labels[name] for name in variants}
    labels |= figures.labels.get(key, {})
    return {"labels": labels, "metric": cfg.data.metrics[0], "task": task, "variants": variants}


def figure_panels(key):
    """The one panel of a task's cost–quality figure."""
    return lambda wildcards: [panel_of(suite_of(wildcards), wildcards.task, key)]


def layers_cfg(key):
    """Variants and operating points of a figure of executed experts per layer."""

    def cfg(wildcards):
        suite, task = suite_of(wildcards), wildcards.task
        layers = getattr(CONFIG.tasks[task].figures_of(suite), key)
        return panel_of(suite, task, key, layers.variants) | {"values": layers.values}

    return cfg


def load_map_tensors(wildcards):
    """Images and load maps that are drawn."""
    lineage = load_map_lineage(suite_of(wildcards), wildcards.task)
    return f"{lineage.folder}/load_maps/{lineage.rule}.safetensors"


# Wall-clock benchmarks: the entries of each table; all but the first need a GPU.
BENCHMARKS = {
    "cpu": CONFIG.benchmarks.cpu,
    "layer": CONFIG.benchmarks.gpu,
    "model": CONFIG.benchmarks.models,
    "decode": CONFIG.benchmarks.decode,
}


def benchmark_entries(table):
    """The tables of a benchmark's entries."""
    return [{"path": f"results/benchmarks/{table}/{entry}.csv"} for entry in BENCHMARKS[table]]


def benchmark_masks(table, entry):
    """The recorded masks, where an entry of a benchmark follows them."""
    return "results/benchmarks/masks.safetensors" if BENCHMARKS[table][entry].converted else []


def masks_model():
    """The folder of the model whose masks are recorded."""
    masks = CONFIG.benchmarks.masks
    wanted = (masks.task, masks.variant, CONFIG.seeds[0])
    return next(x.folder for x in LINEAGES["main"] if (x.task, x.variant, x.seed) == wanted)


def timed_here():
    """The benchmarks that this machine can run."""
    names = [name for name, entries in BENCHMARKS.items() if entries]
    return names if shutil.which("nvidia-smi") else [x for x in names if x == "cpu"]


def timed_layers():
    """The tables of layers that this machine can make."""
    names = [name for name in timed_here() if name in ("cpu", "layer")]
    return [f"results/benchmarks/{name}.csv" for name in names]


def benchmark_results():
    """The figures, and with them the tables, of what this machine can time, and their claims."""
    names = timed_here()
    if names != [name for name, entries in BENCHMARKS.items() if entries]:
        if "benchmarks" in sys.argv:
            print("no NVIDIA driver here: benchmarks of the GPU are left out", file=sys.stderr)
    shapes = {tuple(x.shape.values()) for x in BENCHMARKS["layer"].values()}
    figures = [*names, "layer_appendix"] if "layer" in names and len(shapes) > 1 else names
    claims = ["results/benchmarks/claims.csv"] if timed_layers() else []
    return [f"results/figures/benchmarks/{name}.png" for name in figures] + claims
