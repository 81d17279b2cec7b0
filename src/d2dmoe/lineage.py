"""Where each stage's result lies: inside its parent's folder, named after its own options.

    results/models/TASK/seed~0/dense/epochs~15,lr~0.002/
        sparsify/mode~relu_hoyer,alpha~0.004,…/split/method~kmeans,expert_size~8/router/…

So variants that share a stage share its folder, and the stage is run once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from d2dmoe.config.base import Strict
from d2dmoe.config.experiment import Config, TaskConfig
from d2dmoe.config.training import TrainingConfig

STAGES: dict[str, tuple[str, ...]] = {
    "dense": ("epochs", "lr"),
    "finetune": ("epochs", "lr"),
    "sparsify": ("mode", "alpha", "schedule", "epochs", "lr"),
    "split": ("method", "expert_size"),
    "router": ("kind", "width", "epochs", "lr"),
}
"""Each stage's options that name its folder: those that a variant may change."""

MODELS = PurePosixPath("results/models")
DENSE_VARIANTS = {"dense": "dense", "dense_finetuned": "dense, fine-tuned"}  # name: label


def folder_name(stage: str, cfg: Strict) -> str:
    """A stage's folder name: its naming options as key~value, joined by commas."""
    return ",".join(f"{key}~{_text(getattr(cfg, key))}" for key in STAGES[stage])


def _text(value: Any) -> str:
    """A value as people write it: 3 for 3.0."""
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
    rule: str  # selection rule; "dense" for the models without routers

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
    total = round(task.sparsify.epochs + task.router.epochs, 10)  # 0.3, not 0.30000000000000004
    return TrainingConfig(**options | {"epochs": total})


def lineages(config: Config) -> Iterator[Lineage]:
    """Dense, its fine-tuned reference and every variant, of each task and seed."""
    for name, task in config.tasks.items():
        for seed in config.seeds:
            yield _lineage(name, seed, "dense", "dense", [("dense", task.dense)])
            stages = [("dense", task.dense), ("finetune", finetune_config(task))]
            yield _lineage(name, seed, "dense", "dense_finetuned", stages)
            for variant, cfg in task.variants.items():
                resolved = task.stages(variant)
                stages = [
                    ("dense", task.dense),
                    ("sparsify", resolved.sparsify),
                    ("split", resolved.split),
                    ("router", resolved.router),
                ]
                yield _lineage(name, seed, cfg.method, variant, stages, cfg.label, resolved.rule)


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
    return {str(s.folder): plain(s.cfg) for line in lineages(config) for s in line.steps}


def plain(cfg: Strict) -> dict[str, Any]:
    """Options as a sorted dict of plain values, whose text form is stable."""
    return dict(sorted(cfg.model_dump(mode="json").items()))
