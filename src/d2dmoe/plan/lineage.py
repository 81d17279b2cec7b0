"""The lineage of every model: the stages from the dense model to a variant's, for one seed.

Variants that share stages share their folders, so such a stage is run once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from d2dmoe.config.experiment import Config
from d2dmoe.config.strict import Strict
from d2dmoe.config.task import SUITES, Chain, Suite, TaskConfig
from d2dmoe.config.variant import DENSE_VARIANTS, FINETUNED
from d2dmoe.methods import METHODS, Evaluation, Method, evaluation_of
from d2dmoe.plan.folders import data_folder, plain, stage_folder
from d2dmoe.plan.variants import bases_of, chains, knob_of, variants_of, with_rate
from d2dmoe.stages import STAGES, Stage

DENSE = next(iter(DENSE_VARIANTS))


@dataclass(frozen=True)
class Step:
    """One stage of a lineage."""

    task: str
    seed: int
    stage: Stage
    cfg: Strict
    data: str  # folder of the dataset
    folder: str
    parent: "Step | None"

    @property
    def model(self) -> str:
        """Path of its model."""
        return f"{self.folder}/model.safetensors"

    @property
    def steps(self) -> "tuple[Step, ...]":
        """All steps up to this one."""
        return (*(self.parent.steps if self.parent else ()), self)

    @property
    def architectures(self) -> set[str]:
        """Of the models that the step reads or makes."""
        models = (getattr(step.cfg, "model", None) for step in self.steps)
        return {model.architecture for model in models if model is not None}

    def evaluation(self, split: str, knob: str) -> str:
        """Path of the table of operating points on the `validation` or `test` split."""
        return f"{self.folder}/evaluate/{split}/{knob}.csv"

    def outcomes(self, split: str, knob: str) -> str:
        """Path of what became of each sample at those operating points."""
        return f"{self.folder}/evaluate/{split}/{knob}.safetensors"

    def layers(self, split: str, knob: str) -> str:
        """Path of the table of layers at those operating points."""
        return f"{self.folder}/evaluate/{split}/{knob}_layers.csv"


@dataclass(frozen=True)
class Lineage:
    """All steps from the dense model to one variant's model, for one seed."""

    task: str
    seed: int
    method: Method
    variant: str
    last: Step
    knob: str  # what the operating points differ in

    @property
    def steps(self) -> tuple[Step, ...]:
        """From the dense model's to the last."""
        return self.last.steps

    @property
    def folder(self) -> str:
        """Folder of the last stage's model."""
        return self.last.folder

    @cached_property
    def how(self) -> Evaluation:
        """How its operating points are measured."""
        return evaluation_of(self.knob)

    def step_of(self, stage: str) -> Step:
        """One of its steps."""
        return next(step for step in self.steps if step.stage.name == stage)

    def evaluation(self, split: str) -> str:
        """Path of the table of its operating points on a split."""
        return self.last.evaluation(split, self.knob)

    def outcomes(self, split: str) -> str:
        """Path of what became of each sample at its operating points."""
        return self.last.outcomes(split, self.knob)

    def layers(self, split: str) -> str:
        """Path of the table of layers at its operating points."""
        return self.last.layers(split, self.knob)

    @property
    def labels(self) -> dict[str, Any]:
        """Leading columns of its rows in tables."""
        return {
            "task": self.task,
            "method": self.method.name,
            "variant": self.variant,
            "seed": self.seed,
        }


def lineages(config: Config, suite: Suite = SUITES[0]) -> Iterator[Lineage]:
    """Dense, its fine-tuned reference and every variant of a suite, of each task and seed, and the
    compressed models that variants convert."""
    for name, task in config.tasks.items():
        for seed in config.seeds_of(name) if variants_of(task, suite) else []:
            make = _Maker(name, task, seed)
            yield from make.with_finetuned(DENSE, DENSE, [task.dense_step])
            for base in bases_of(task, suite):
                step = task.base_step(base)
                chain = [task.dense_step, step]
                yield from make.with_finetuned(STAGES[step[0]].method, base, chain)
            for variant in variants_of(task, suite):
                yield from make.of_variant(variant)


def trials(config: Config) -> Iterator[tuple[float, Lineage]]:
    """Every learning rate tried and its lineage, of each task and seed, and the dense models, which
    have none (0). The trials of a variant at all its rates bear its name."""
    for name, task in config.tasks.items():
        for seed in config.seeds_of(name) if task.tuning else []:
            make = _Maker(name, task, seed)
            yield 0.0, make.lineage(DENSE, DENSE, [task.dense_step])
            for variant, rates in task.tuning.items():
                for rate in rates:
                    yield from ((rate, line) for line in make.of_variant(variant, rate))


@dataclass(frozen=True)
class _Maker:
    """Makes the lineages of one task and seed."""

    name: str
    task: TaskConfig
    seed: int

    def lineage(self, method: str, variant: str, chain: Chain, knob: str = DENSE) -> Lineage:
        """The steps of a chain; `knob` of a model with one operating point is the dense model's."""
        data = data_folder(self.name, self.task.data)
        options: list[tuple[str, Any]] = [("data", plain(self.task.data))]
        step: Step | None = None
        for stage, cfg in chain:
            options.append((stage, plain(cfg)))
            folder = stage_folder(self.name, self.seed, options)
            step = Step(self.name, self.seed, STAGES[stage], cfg, data, folder, step)
        assert step is not None  # the dense model's at least
        return Lineage(self.name, self.seed, METHODS[method], variant, step, knob)

    def with_finetuned(self, method: str, variant: str, chain: Chain) -> Iterator[Lineage]:
        """A model without experts, and the same trained on for as long as a conversion takes."""
        yield self.lineage(method, variant, chain)
        longer = [*chain, self.task.finetune_step]
        yield self.lineage(method, f"{variant}{FINETUNED}", longer)

    def of_variant(self, variant: str, rate: float | None = None) -> Iterator[Lineage]:
        """A variant's, several where one training is one operating point; `rate` is another than
        its own."""
        if variant in DENSE_VARIANTS:
            method, knob = DENSE, DENSE
            found = [[self.task.dense_step, self.task.finetune_step]]
        else:
            method, knob = self.task.all_variants[variant].method, knob_of(self.task, variant)
            found = chains(self.task, variant)
        for chain in found:
            changed = chain if rate is None else with_rate(chain, rate)
            yield self.lineage(method, variant, changed, knob)


def steps_of(lines: Iterable[Lineage]) -> dict[str, Step]:
    """The steps of lineages, by their folders."""
    return {step.folder: step for line in lines for step in line.steps}
