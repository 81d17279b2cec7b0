"""A configuration's plan: its lineages, their stages' folders, and the code behind each job."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.config.experiment import Config, parse_config
from d2dmoe.config.task import SUITES, Suite, TaskConfig
from d2dmoe.errors import ConfigError
from d2dmoe.lookup import module_of
from d2dmoe.methods import Evaluation
from d2dmoe.models import ARCHITECTURES
from d2dmoe.plan.checks import check
from d2dmoe.plan.digest import code_digest
from d2dmoe.plan.folders import data_folder, plain
from d2dmoe.plan.lineage import Lineage, Step, all_steps, lineages, trials
from d2dmoe.plan.variants import variants_of
from d2dmoe.selection_rules import RULES

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Plan:
    """What `snakemake` can make of a configuration; `root` is the repository."""

    config: Config
    root: Path

    @cached_property
    def lineages(self) -> dict[str, list[Lineage]]:
        """By suite."""
        return {suite: list(lineages(self.config, suite)) for suite in SUITES}

    @cached_property
    def trials(self) -> list[tuple[float, Lineage]]:
        """Every learning rate tried, and its lineage."""
        return list(trials(self.config))

    @cached_property
    def steps(self) -> dict[str, Step]:
        """All stages of all lineages, by their folders."""
        return all_steps(self.config)

    def task(self, name: str) -> TaskConfig:
        """The options of a task."""
        return self.config.tasks[name]

    def step(self, folder: str) -> Step:
        """The stage whose result lies in a folder.

        Raises:
            ConfigError: no variant of the configuration leads to the folder.
        """
        if folder not in self.steps:
            raise ConfigError(
                f"no variant of this configuration leads to {folder}; results/models.csv, which "
                "`snakemake models` makes, lists the folders that there are"
            )
        return self.steps[folder]

    def lines(self, suite: Suite, task: str) -> list[Lineage]:
        """The lineages of a task in a suite."""
        return [line for line in self.lineages[suite] if line.task == task]

    def line(self, suite: Suite, task: str, variant: str) -> Lineage:
        """A variant's lineage, of the first seed."""
        seed = self.config.seeds[0]
        found = self.lines(suite, task)
        return next(x for x in found if (x.variant, x.seed) == (variant, seed))

    def tasks_of(self, suite: Suite) -> list[str]:
        """The tasks that have a part in a suite."""
        return [name for name, task in self.config.tasks.items() if variants_of(task, suite)]

    def data_folder(self, task: str) -> str:
        """Where a task's prepared dataset lies."""
        return data_folder(task, self.task(task).data)

    def dataset(self, folder: str) -> Any:
        """The options of the dataset that lies in a folder.

        Raises:
            ConfigError: no task of the configuration reads it.
        """
        for name, task in self.config.tasks.items():
            if folder == self.data_folder(name):
                return task.data
        raise ConfigError(f"no task of this configuration reads {folder}")

    def data_files(self, folder: str, splits: Iterable[str] = SPLITS) -> list[str]:
        """The description and some splits of the dataset in a folder."""
        return [f"{folder}/dataset.json", *(f"{folder}/{split}.safetensors" for split in splits)]

    def code(self, script: str, modules: Iterable[str] = ()) -> str:
        """Digest of a script, of further modules, and of all that they import: an edit of any
        repeats the jobs that have it."""
        own = {name for name in modules if name.split(".")[0] not in LIBRARIES}
        return code_digest(self.root / "scripts" / f"{script}.py", self.root / "src", sorted(own))

    def stage_code(self, step: Step) -> str:
        """Digest of what makes a stage's result."""
        script = "train" if step.stage.trains else "convert"
        modules = {module_of(reference) for reference in step.stage.references}
        for option, (table, reference) in step.stage.named.items():
            modules.add(module_of(getattr(table[getattr(step.cfg, option)], reference)))
        return self.code(script, modules | model_modules(step))

    def evaluation_code(self, how: Evaluation, step: Step, knob: str) -> str:
        """Digest of what measures a stage's model."""
        selects = {module_of(RULES[knob].select)} if knob in RULES else set()
        return self.code("evaluate", {module_of(how.measure)} | selects | model_modules(step))

    def model_code(self, script: str, step: Step) -> str:
        """Digest of a script that reads a stage's model."""
        return self.code(script, model_modules(step))


LIBRARIES = ("torch",)  # of records' references: their versions are the environment's


def model_modules(step: Step) -> set[str]:
    """The modules by which a stage's model is rebuilt: its architectures', and those of the stages
    that left modules of their own in it."""
    modules = {ARCHITECTURES[name].module for name in step.architectures}
    modules |= {module_of(s.stage.rebuild) for s in step.steps if s.stage.rebuild}
    for model in (getattr(s.cfg, "model", None) for s in step.steps):
        if model is not None and model.activation is not None:
            modules.add(module_of(ACTIVATIONS[model.activation].torch))
    return modules


def load_plan(raw: Mapping[str, Any], root: Path) -> Plan:
    """Check a configuration and plan it; `root` is the repository, where `resources/` lies.

    Raises:
        ConfigError: one message with a line for every fault: key, value, what is allowed.
        DataError: a task's dataset is not there.
    """
    config = parse_config(raw)
    check(config, root)
    return Plan(config, root)


def options_of(step: Step) -> dict[str, Any]:
    """A stage's options, for its job."""
    return plain(step.cfg)


def lineage_of(step: Step) -> dict[str, Any]:
    """What `lineage.yaml` in a stage's folder says: the options, and where all of it comes from."""
    return {
        "task": step.task,
        "seed": step.seed,
        "stage": step.stage.name,
        "options": plain(step.cfg),
        "parent": step.parent.folder if step.parent else None,
        "data": step.data,
    }
