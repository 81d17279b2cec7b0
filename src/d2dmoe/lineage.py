"""Where each stage's result lies: inside its parent's folder, named after its own options.

    results/models/TASK/seed~0/dense/epochs~15,lr~0.002/
        sparsify/mode~relu_hoyer,alpha~0.004,…/split/method~kmeans,expert_size~8/router/…

So variants that share a stage share its folder, and the stage is run once. Where attention
projections are converted, `projections/…` lies between dense and sparsify.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from d2dmoe.config.base import Strict
from d2dmoe.config.experiment import SUITES, Config, Suite, TaskConfig
from d2dmoe.config.training import TrainingConfig
from d2dmoe.config.variants import ConversionVariant, HaltingVariant, Stages

STAGES: dict[str, tuple[str, ...]] = {
    "dense": ("epochs", "lr"),
    "finetune": ("epochs", "lr"),
    "projections": ("maps", "factor", "alpha", "epochs", "lr"),
    "sparsify": ("mode", "alpha", "schedule", "epochs", "lr"),
    "split": ("method", "expert_size", "projection_expert_size"),
    "router": ("kind", "width", "projection_width", "epochs", "lr"),
    "ztw": ("epochs", "lr"),
    "avit": ("depth", "epochs", "lr"),
}
"""Each stage's options that name its folder: those that a variant may change."""

MODELS = PurePosixPath("results/models")
DENSE_VARIANTS = {"dense": "dense", "dense_finetuned": "dense, fine-tuned"}  # name: label


def folder_name(stage: str, cfg: Strict) -> str:
    """A stage's folder name: its naming options as key~value, joined by commas; those that are None
    do not apply."""
    named = {key: getattr(cfg, key) for key in STAGES[stage]}
    return ",".join(f"{k}~{_text(value)}" for k, value in named.items() if value is not None)


def _text(value: Any) -> str:
    """A value as people write it: 3 for 3.0, qkvo for a list of projections."""
    if isinstance(value, list):
        return "".join(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


@dataclass(frozen=True)
class Step:
    """One stage of one lineage."""

    stage: str
    folder: PurePosixPath
    cfg: Strict


@dataclass(frozen=True)
class Lineage:
    """A composition of one task, variant and seed, stage by stage."""

    task: str
    seed: int
    method: str
    variant: str
    label: str
    steps: tuple[Step, ...]
    rule: str  # the knob of the operating points: selection rule, confidence, depth; or "dense"

    @property
    def folder(self) -> PurePosixPath:
        """Folder of the last stage's model."""
        return self.steps[-1].folder

    def folder_of(self, stage: str) -> PurePosixPath:
        """Folder of a stage's model."""
        return next(step.folder for step in self.steps if step.stage == stage)

    def evaluation(self, split: str) -> PurePosixPath:
        """Table of the operating points on a split."""
        return self.folder / "evaluate" / split / f"{self.rule}.csv"


def finetune_config(task: TaskConfig) -> TrainingConfig:
    """The dense reference's extra training: as long as all of a conversion's stages together."""
    options = {key: getattr(task.sparsify, key) for key in TrainingConfig.model_fields}
    return TrainingConfig(**options | {"epochs": task.epochs})


def lineages(config: Config, suite: Suite = "main") -> Iterator[Lineage]:
    """Dense, its fine-tuned reference and every variant of a suite, of each task and seed."""
    for name, task in config.tasks.items():
        if not task.variants_of(suite):
            continue
        for seed in config.seeds:
            yield _lineage(name, seed, "dense", "dense", [("dense", task.dense)])
            stages = [("dense", task.dense), ("finetune", finetune_config(task))]
            yield _lineage(name, seed, "dense", "dense_finetuned", stages)
            for variant in task.variants_of(suite):
                cfg, rule = task.all_variants[variant], task.rule(variant)
                for stages in _chains(task, variant):
                    yield _lineage(name, seed, cfg.method, variant, stages, cfg.label, rule)


def _chains(task: TaskConfig, variant: str) -> Iterator[list[tuple[str, Strict]]]:
    """A variant's stages and their options; several times where one training is one operating
    point."""
    cfg, dense = task.all_variants[variant], ("dense", task.dense)
    if isinstance(cfg, HaltingVariant):
        for depth in cfg.depths:
            yield [dense, ("avit", task.avit.model_copy(update={"depth": depth}))]
    elif isinstance(cfg, ConversionVariant):
        stages = task.stages(variant)
        named = (stage for stage in STAGES if stage in Stages.model_fields)
        found = ((stage, getattr(stages, stage)) for stage in named)
        yield [dense, *((stage, own) for stage, own in found if own is not None)]
    else:
        yield [dense, ("ztw", task.ztw)]


def _lineage(
    task: str,
    seed: int,
    method: str,
    variant: str,
    stages: list[tuple[str, Strict]],
    label: str | None = None,
    rule: str = "dense",
) -> Lineage:
    folder = MODELS / task / f"seed~{seed}"
    steps = []
    for stage, cfg in stages:
        folder = folder / stage / folder_name(stage, cfg)
        steps.append(Step(stage, folder, cfg))
    label = label or DENSE_VARIANTS[variant]
    return Lineage(task, seed, method, variant, label, tuple(steps), rule)


def stage_configs(config: Config) -> dict[str, dict[str, Any]]:
    """The options of every stage of a configuration, as `plain`, by the folder of its result."""
    lines = (line for suite in SUITES for line in lineages(config, suite))
    return {str(s.folder): plain(s.cfg) for line in lines for s in line.steps}


def plain(cfg: Strict) -> dict[str, Any]:
    """Options as a sorted dict of plain values, whose text form is stable."""
    return dict(sorted(cfg.model_dump(mode="json").items()))
