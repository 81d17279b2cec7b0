"""A configuration's plan: its lineages, their stages' folders, and the code behind each job."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.claims import CLAIMS
from d2dmoe.config.experiment import Config, parse_config
from d2dmoe.config.task import SUITES, Suite, TaskConfig
from d2dmoe.errors import ConfigError
from d2dmoe.figures import FIGURES, WALL_CLOCK, Figure
from d2dmoe.methods import METHODS, Evaluation, rule_of
from d2dmoe.models import ARCHITECTURES
from d2dmoe.plan.checks import check
from d2dmoe.plan.defaults import completed
from d2dmoe.plan.digest import Use, code_digest
from d2dmoe.plan.folders import data_folder, plain
from d2dmoe.plan.lineage import Lineage, Step, lineages, steps_of, trials
from d2dmoe.plan.variants import variants_of
from d2dmoe.selection_rules import RULES

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Plan:
    """What `snakemake` can make of a configuration; `root` holds the code that it runs."""

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
    def trial_folders(self) -> list[str]:
        """Names of the folders of models that are trials of learning rates and nothing else: test
        samples do not measure them."""
        shown = {_name(line.folder) for lines in self.lineages.values() for line in lines}
        return sorted({_name(line.folder) for _rate, line in self.trials} - shown)

    @cached_property
    def steps(self) -> dict[str, Step]:
        """All stages of all lineages, by their folders."""
        lines = [line for lines in self.lineages.values() for line in lines]
        return steps_of([*lines, *(line for _rate, line in self.trials)])

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
        seed = self.config.seeds_of(task)[0]
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

    def code(self, script: str, uses: Iterable[Use] | None = None) -> str:
        """Digest of a script, of the records that it uses, and of all that stands behind them: an
        edit of any repeats the jobs that have it. None: the script reads whole tables."""
        return code_digest(self.root / "scripts" / f"{script}.py", self.root / "src", uses)

    def stage_code(self, step: Step) -> str:
        """Digest of what makes a stage's result."""
        script = "train" if step.stage.trains else "convert"
        losses = (
            [use for s in step.steps for use in _named(s, ("loss",))] if script == "train" else []
        )
        made = [Use(step.stage, ("make", "options")), *losses]
        return self.code(script, [*made, *model_uses(step)])

    def evaluation_code(self, how: Evaluation, step: Step, knob: str) -> str:
        """Digest of what measures a stage's model."""
        return self.code("evaluate", [Use(how, ("measure", "choose")), *routed_uses(step, knob)])

    def model_code(self, script: str, step: Step, knob: str | None = None) -> str:
        """Digest of a script that runs a stage's model, by a rule where there is a knob."""
        return self.code(script, routed_uses(step, knob) if knob else model_uses(step))

    def benchmark_code(self, script: str, entry: Any) -> str:
        """Digest of what times an entry of the benchmarks: it reads whole tables, and builds the
        entry's model where there is one."""
        model = getattr(entry, "model", None)
        uses = [Use(ARCHITECTURES[model.architecture], ("module",))] if model else []
        return self.code(script) + self.code(script, uses)

    def figure_code(self, figure: Figure) -> str:
        """Digest of what draws a figure; its axes may name any selection rule's values."""
        return self.code("figure", [Use(figure, ("draw",)), *map(Use, RULES.values())])

    def published_code(self) -> str:
        """Digest of what draws all figures of published results."""
        drawn = [Use(figure, ("draw", "request")) for figure in (*FIGURES.values(), WALL_CLOCK)]
        return self.code("published", [*drawn, *map(Use, RULES.values())])

    def explorer_code(self, script: str) -> str:
        """Digest of what makes a page of the explorer, which reads whole tables and the plan."""
        return self.code(script, map(Use, RULES.values()))

    def claims_code(self) -> str:
        """Digest of what decides the claims; methods' records say which of them are compared."""
        tests = [Use(claim, ("test",)) for claim in CLAIMS.values()]
        return self.code("claims", [*tests, *map(Use, METHODS.values())])


def _name(folder: str) -> str:
    """A folder's own name."""
    return folder.rpartition("/")[2]


def model_uses(step: Step) -> list[Use]:
    """The records by which a stage's model is rebuilt: its architectures and their activations, the
    stages that it went through, and what their options name, as the kind of its routers."""
    uses = [Use(ARCHITECTURES[name], ("module",)) for name in step.architectures]
    for s in step.steps:
        uses += [Use(s.stage, ("rebuild",)), *_named(s, ("scores", "select", "torch"))]
    return uses + [Use(ACTIVATIONS[name], ("torch",)) for name in _activations(step)]


def routed_uses(step: Step, knob: str) -> list[Use]:
    """Those by which it is run: also the selection rule, and what the kernels call."""
    uses = model_uses(step)
    for s in step.steps:
        uses += _named(s, ("triton",))
    uses += [Use(ACTIVATIONS[name], ("triton",)) for name in _activations(step)]
    rule = rule_of(knob)
    return uses + ([Use(rule, ("select",))] if rule else [])


def _named(step: Step, references: tuple[str, ...]) -> list[Use]:
    """The records that a stage's options name."""
    named = ((table, getattr(step.cfg, option)) for option, table in step.stage.named.items())
    return [Use(table[name], references) for table, name in named if name is not None]


def _activations(step: Step) -> list[str]:
    """The activations that a model may have: its own and ReLU, which sparsification and projections
    bring; all of them where its weights come from elsewhere."""
    found = {"relu"}
    for model in (getattr(s.cfg, "model", None) for s in step.steps):
        if model is not None:
            own = model.activation or ARCHITECTURES[model.architecture].activation
            found |= {own} if own and model.weights == "scratch" else {*ACTIVATIONS}
    return sorted(found)


def load_plan(raw: Mapping[str, Any], root: Path, folder: Path | None = None) -> Plan:
    """Complete a configuration, check it and plan it.

    Args:
        raw: as YAML gives it.
        root: the repository, with `scripts/` and `src/`.
        folder: where relative paths of the configuration begin; `root` unless given.

    Raises:
        ConfigError: one message with a line for every fault: key, value, what is allowed.
        DataError: a task's dataset is not there.
        CheckpointError: pretrained weights are not there, or not those of the model.
    """
    config = parse_config(completed(raw, folder or root))
    check(config, folder or root)
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
