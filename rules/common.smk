# What all rules share: the checked configuration, the lineages' folders, the digests of the code.
from d2dmoe.config.experiment import load_config
from d2dmoe.digest import code_digest
from d2dmoe.lineage import lineages, plain, stage_configs

ROOT = Path(workflow.basedir)
CONFIG = load_config(config, ROOT)  # ends the run with one message if anything is wrong
LINEAGES = list(lineages(CONFIG))
STEPS = stage_configs(CONFIG)

# Folders of the stages, each inside its parent's.
DENSE = "results/models/{task}/seed~{seed}/dense/{dense}"
FINETUNE = f"{DENSE}/finetune/{{finetune}}"
SPARSIFY = f"{DENSE}/sparsify/{{sparsify}}"
SPLIT = f"{SPARSIFY}/split/{{split}}"
ROUTER = f"{SPLIT}/router/{{router}}"

TABLES = "results/tables"  # what figures, claims and the report read
FIGURES = "results/figures"


wildcard_constraints:
    task="[^/]+",
    seed=r"\d+",
    dense="[^/]+",
    finetune="[^/]+",
    sparsify="[^/]+",
    split="[^/]+",
    router="[^/]+",
    model=r"results/models/.+",
    part="validation|test",
    knob="dynamic_k|top_k|coverage",
    table="tradeoff|summary|layers|activity|patch_load|reference|validation",


def stage_cfg(folder):
    """A stage's own options, for `params`."""
    return lambda wildcards: STEPS[folder.format(**wildcards)]


def stage_threads(folder):
    """CPU threads that a stage's training asks for."""
    return lambda wildcards: STEPS[folder.format(**wildcards)]["threads"]


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
