# What all rules share: the checked configuration, the lineages' folders, the digests of the code.
import re
import shutil
import sys

from d2dmoe.config.experiment import load_config
from d2dmoe.config.task import SUITES
from d2dmoe.config.variants import FINETUNED
from d2dmoe.plan.digest import code_digest
from d2dmoe.plan.lineage import lineages, plain, stage_configs, trials

ROOT = Path(workflow.basedir)
CONFIG = load_config(config, ROOT)  # ends the run with one message if anything is wrong
LINEAGES = {suite: list(lineages(CONFIG, suite)) for suite in SUITES}
TRIALS = list(trials(CONFIG))
STEPS = stage_configs(CONFIG)

# Folders of the stages, each inside its parent's.
DENSE = "results/models/{task}/seed~{seed}/dense/{dense}"
PRUNE = f"{DENSE}/prune/{{prune}}"
DISTILL = f"{DENSE}/distill/{{distill}}"
SOURCE = "results/models/{task}/seed~{seed}/{source}"  # what is converted: any of these three
FINETUNE = f"{SOURCE}/finetune/{{finetune}}"
PROJECTIONS = f"{SOURCE}/projections/{{projections}}"
BASE = "results/models/{task}/seed~{seed}/{base}"  # what is sparsified: these, or with projections
SPARSIFY = f"{BASE}/sparsify/{{sparsify}}"
SPLIT = f"{SPARSIFY}/split/{{split}}"
ROUTER = f"{SPLIT}/router/{{router}}"
ZTW = f"{DENSE}/ztw/{{ztw}}"
AVIT = f"{DENSE}/avit/{{avit}}"
QUANTIZE = "results/models/{parent}/quantize/{quantize}"  # of a model of any stage

# Each suite's tables, which figures, claims and the report read, lie in a folder of their own, but for
# the main one's. The wildcard `suite` is that folder with its slash, or empty.
TABLES = "results/tables/{suite}"
FIGURES = "results/figures/{suite}"


FROM_DENSE = "dense/[^/]+(/(prune|distill)/[^/]+)?"


wildcard_constraints:
    suite="|".join(["", *(f"{suite}/" for suite in SUITES[1:])]),
    task="|".join(map(re.escape, CONFIG.tasks)),
    seed=r"\d+",
    dense="[^/]+",
    finetune="[^/]+",
    prune="[^/]+",
    distill="[^/]+",
    source=FROM_DENSE,
    projections="[^/]+",
    base=f"{FROM_DENSE}(/projections/[^/]+)?",
    sparsify="[^/]+",
    split="[^/]+",
    router="[^/]+",
    ztw="[^/]+",
    avit="[^/]+",
    parent=".+",
    quantize="[^/]+",
    model=r"results/models/.+",
    part="validation|test",
    knob="dynamic_k|top_k|coverage",
    table="tradeoff|summary|layers|activity|patch_load|reference|validation|fairness|tuning",


def stage_cfg(folder):
    """A stage's own options, for `params`."""
    return lambda wildcards: STEPS[folder.format(**wildcards)]


def stage_threads(folder):
    """CPU threads that a stage's training asks for."""
    return lambda wildcards: STEPS[folder.format(**wildcards)]["threads"]


def folder_of(suite):
    """The value of the wildcard `suite`."""
    return "" if suite == "main" else f"{suite}/"


def suite_of(wildcards):
    """The suite that a path belongs to."""
    return next(suite for suite in SUITES if folder_of(suite) == wildcards.suite)


def code(script):
    """Digest of a script and of all modules that it imports: an edit of any reruns its rule."""
    return code_digest(ROOT / "scripts" / f"{script}.py", ROOT / "src")


def data_files(wildcards):
    """The prepared dataset of a task."""
    names = ("dataset.json", "train.safetensors", "validation.safetensors", "test.safetensors")
    return [f"results/data/{wildcards.task}/{name}" for name in names]


def log_of(folder, name):
    """A stage's log, beside its results in a tree of its own."""
    return f"results/logs/{folder.removeprefix('results/models/')}/{name}.log"


def benchmark_of(folder, name):
    """Time and memory of a stage's job."""
    return f"results/benchmarks/jobs/{folder.removeprefix('results/models/')}/{name}.jsonl"
