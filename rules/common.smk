# What all rules share: the plan, the patterns of paths, and how wildcards ask the plan.
import json
import os
import re

from snakemake.utils import available_cpu_count

from d2dmoe.extensions import import_extensions

import_extensions(config)  # first: they add records to the tables that the plan is made of

from d2dmoe.config.sources import find_vendored
from d2dmoe.config.task import SUITES
from d2dmoe.config.variant import DENSE_VARIANTS
from d2dmoe.figures import FIGURES, WALL_CLOCK
from d2dmoe.jobs.console import Console
from d2dmoe.jobs.forkserver import start_forkserver
from d2dmoe.jobs.machine import (
    end_gracefully,
    limit_threads,
    link_interpreter,
    stop_jobs_with_the_workflow,
)
from d2dmoe.jobs.names import variants_by_folder
from d2dmoe.lookup import resolve
from d2dmoe.methods import EVALUATIONS
from d2dmoe.plan import benchmarks, claims, cluster, digest, explorer, publishing, tables
from d2dmoe.plan.figures import folder_of
from d2dmoe.plan.folders import DIGEST, plain
from d2dmoe.plan.plan import SPLITS, lineage_of, load_plan, options_of
from d2dmoe.plan.tables import job_log, job_record
from d2dmoe.selection_rules import RULES
from d2dmoe.stages import STAGES

digest.KEPT.use(Path.cwd() / ".snakemake/code.json")
PLAN = load_plan(config, ROOT, Path.cwd())  # ends the run with one message if anything is wrong

# Jobs read it as it is checked, not as it may be written after --config.
config["runtime"] = PLAN.config.runtime.model_dump()
RESOURCES = PLAN.config.resources
config["resources"] = RESOURCES.model_dump()

# Jobs that share a CPU take longer than one after the other, so --cores counts up to the CPUs there are.
CPUS = available_cpu_count()
if workflow.global_resources["_cores"].value:
    workflow.global_resources["_cores"] = min(workflow.cores, CPUS)
limit_threads()
link_interpreter(Path.cwd())
stop_jobs_with_the_workflow()

# Folders have digests in their names; people want to read of variants, here and in the jobs' logs.
Console.variants = config["variants_by_folder"] = variants_by_folder(tables.models(PLAN))

# Of a job that computes on a GPU where there is one, each on its own: how many a machine has is said by
# --resources device=N, and how a cluster is asked for one, by its profile.
DEFAULTS = workflow.resource_settings.default_resources or {}
ASKED = DEFAULTS["gpu_request"].raw if "gpu_request" in DEFAULTS else ""
REQUEST = cluster.gpu_request(ASKED)
GPU = {"device": 1} | REQUEST

# Of one that several processes share, as `resources` in the configuration say.
GPUS = cluster.several(RESOURCES, ASKED)
MACHINES = cluster.machines(RESOURCES, gpu=bool(REQUEST))

DATA = "results/data/{task}/{dataset}"
FOLDER = "results/models/{task}/seed-{seed}/{folder}"  # of a stage, for one variant or several

# Each suite's tables, which figures, claims and the report read, lie in a folder of their own, but for
# the main one's. The wildcard `suite` is that folder with its slash, or empty.
TABLES = "results/tables/{suite}"
FIGURE_FOLDER = "results/figures/{suite}"
REFERENCE = Path(os.path.relpath(ROOT / "results/reference"))  # which comes with the project


wildcard_constraints:
    suite="|".join(map(folder_of, SUITES)),
    task="|".join(map(re.escape, PLAN.config.tasks)),
    seed=r"\d+",
    dataset=r"[\w.-]+",
    folder=r"[\w.-]+",
    split="validation|test",
    knob=r"\w+",


def suite_of(wildcards):
    """The suite that a path belongs to."""
    return next(suite for suite in SUITES if folder_of(suite) == wildcards.suite)


def step_of(wildcards):
    """The stage whose folder a path names."""
    return PLAN.step(FOLDER.format(**wildcards))


def task_of(wildcards):
    """The options of the task that a path names."""
    return PLAN.task(wildcards.task)


def options(wildcards):
    """A stage's own options."""
    return options_of(step_of(wildcards))


def data_of(wildcards):
    """The dataset that a stage's model is of."""
    return PLAN.data_files(step_of(wildcards).data)


def split_of(wildcards):
    """The one split of it that a path names."""
    return PLAN.data_files(step_of(wildcards).data, [wildcards.split])


def model_code(script):
    """Digest of a script that reads a stage's model."""
    return lambda w: PLAN.model_code(script, step_of(w), w.get("knob"))


def vendored_files(wildcards):
    """Files in the repository that a vendored dataset is read from."""
    kind, _, name = task_of(wildcards).data.source.partition(":")
    files = find_vendored(name, Path.cwd()).glob("*.parquet") if kind == "vendored" else []
    return sorted(map(os.path.relpath, files))  # the same in a moved project


def tokenizer_in(folder):
    """What cuts a task's texts into tokens, in the folder that a function gives; images need none."""

    def tokenizer(wildcards):
        images = task_of(wildcards).data.kind == "images"
        return [] if images else f"{folder(wildcards)}/tokenizer.json"

    return tokenizer


def evaluated_data(how, splits):
    """Some splits of it, and those that an evaluation reads beside them."""
    return lambda w: PLAN.data_files(step_of(w).data, dict.fromkeys((*splits, *how.reads)))


def evaluation_outputs(how, splits):
    """Of each split: operating points, what became of each sample, and layers where there are rows of them."""
    kinds = {"points": ".csv", "samples": ".safetensors"} | (
        {"layers": "_layers.csv"} if how.layers else {}
    )
    return {
        f"{split}_{kind}": f"{FOLDER}/evaluate/{split}/{{knob}}{end}"
        for split in splits
        for kind, end in kinds.items()
    }


def data_options(wildcards):
    """The options of the dataset that a path names."""
    return plain(PLAN.dataset(DATA.format(**wildcards)))


def parent_of(wildcards):
    """The parent's model, where there is one."""
    parent = step_of(wildcards).parent
    return {"model": parent.model} if parent else {}


def stage_inputs(wildcards):
    """The parent's model, and the dataset."""
    return parent_of(wildcards) | {"data": data_of(wildcards)}


def measure_options(wildcards):
    """The values of the knob; [] where there is one operating point."""
    task = task_of(wildcards)
    return {
        "batch_size": task.eval_batch_size,
        "values": getattr(task.select, wildcards.knob, []),
    }


def evaluation_code(how):
    """Digest of what measures a model."""
    return lambda wildcards: PLAN.evaluation_code(how, step_of(wildcards), wildcards.knob)


def sized(needs, processes=1):
    """Memory and run time that a rule's jobs ask a cluster for; `needs` (wildcards, input) says them."""

    def resource(name):
        return lambda wildcards, input, attempt: getattr(
            needs(wildcards, input).together(processes).times(attempt), name
        )

    return {name: resource(name) for name in ("mem_mb", "runtime")}


def samples_in(input, split):
    """Samples in a split of the dataset that a job reads, once it is there; 0 if its description is
    damaged, which the job will say."""
    try:
        return json.loads(Path(input.data[0]).read_text())["sizes"][split]
    except (ValueError, KeyError):
        return 0


def megabytes(files):
    """Size of files, once they are there."""
    return sum(Path(file).stat().st_size for file in files) / 2**20


def training(wildcards, input):
    """What a stage's training needs."""
    return cluster.training_needs(
        step_of(wildcards),
        task_of(wildcards).data,
        samples=samples_in(input, "train"),
        data_mb=megabytes(input),
        gpu=bool(REQUEST),
    )


def measurement_of(*splits):
    """What a job needs that runs a stage's model over splits, once for each operating point."""

    def needs(wildcards, input):
        task = task_of(wildcards)
        return cluster.measuring_needs(
            step_of(wildcards),
            task.data,
            samples=sum(samples_in(input, split) for split in splits),
            data_mb=megabytes(input),
            gpu=bool(REQUEST),
            points=len(getattr(task.select, wildcards.get("knob", ""), [])) or 1,
            batch_size=task.eval_batch_size,
        )

    return needs


def measurement(wildcards, input):
    """The same of the one split that a path names, or of the test split."""
    return measurement_of(wildcards.get("split", "test"))(wildcards, input)


def calibration(wildcards, input):
    """What a stage needs that trains nothing but reads training samples: as measuring them once."""
    return measurement_of("train")(wildcards, input)


def conversion(wildcards, input):
    """What a stage needs that reads no data."""
    return cluster.converting_needs(step_of(wildcards), task_of(wildcards).data)


def request_of(figure, suite=None):
    """What a figure is drawn of, for a path's suite and task, or over all tasks of a suite."""

    def request(wildcards):
        asked = suite or suite_of(wildcards)
        task = None if suite else wildcards.task
        return resolve(figure.request)(PLAN, asked, task, figure)

    return request


def drawing(figure, request):
    """Parameters of a figure's job."""
    return {
        "cfg": lambda wildcards: request(wildcards).arguments,
        "draw": figure.draw,
        "code": PLAN.figure_code(figure),
    }


def figure_inputs(request):
    """Files that a figure is drawn of."""
    return lambda wildcards: request(wildcards).inputs


def reported(path, caption, kind, **labels):
    """A result with its caption in the HTML report: under its kind and suite, with labels instead of
    its path, which may name wildcards."""
    return report(
        path,
        caption=f"../report/{caption}.rst",
        category=kind,
        subcategory=lambda w: w.get("suite", "")[:-1] or "main results",
        labels=labels,
    )


def figure_png(folder, figure):
    """The PNG of a figure, in the report."""
    title = figure.description or figure.name.replace("_", " ").capitalize()
    task = "{task}" if "{task}" in folder else "all"
    return reported(f"{folder}{figure.name}.png", figure.name, "Figures", figure=title, task=task)


def timed_png(path, caption, title):
    """A figure of wall-clock times, in the report."""
    path = f"results/figures/benchmarks/{path}.png"
    return reported(path, caption, "Wall-clock time", figure=title, of="{name}")


def published_files():
    """What is published: tables, what figures show beside them, and configurations."""
    return sorted(p for p in REFERENCE.rglob("*.*") if p.suffix in publishing.KINDS)


def table_page(table, path, caption):
    """A table as the report shows it."""
    return reported(f"results/pages/{path}.html", caption, "Tables", table=table)


def entries_of(gathered, *options):
    """What a task's table is gathered from."""
    return lambda w: gathered(PLAN, suite_of(w), w.task, *options)


def paths_of(gathered, *options):
    """The files among that."""
    entries = entries_of(gathered, *options)
    return lambda w: [entry["path"] for entry in entries(w)]
