"""Where the result of every stage lies: each inside its parent's folder, named by its own options.

    results/models/TASK/seed~0/dense/epochs~15,lr~0.002/
        sparsify/mode~relu_hoyer,alpha~0.004,…/split/method~kmeans,expert_size~8/router/…

So variants that share a stage share its folder, and the stage is run once. Where attention
projections are converted, `projections/…` lies between dense and sparsify; where a compressed model
is, `prune/…` or `distill/…`; quantised weights lie in `quantize/…` inside of the model's folder.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from d2dmoe.config.avit import AViTConfig
from d2dmoe.config.compression import QuantizeConfig
from d2dmoe.config.experiment import Config
from d2dmoe.config.model import TransformerConfig
from d2dmoe.config.strict import Strict
from d2dmoe.config.task import SUITES, Suite, TaskConfig
from d2dmoe.config.variants import (
    DENSE_VARIANTS,
    FINETUNED,
    ConversionVariant,
    HaltingVariant,
    QuantizedVariant,
    Stages,
)
from d2dmoe.errors import ConfigError

STAGES: dict[str, tuple[str, ...]] = {
    "dense": ("epochs", "lr"),
    "finetune": ("epochs", "lr"),
    "prune": ("heads", "neurons", "epochs", "lr"),
    "distill": ("model", "temperature", "imitation", "epochs", "lr"),
    "projections": ("maps", "factor", "alpha", "epochs", "lr"),
    "sparsify": ("mode", "alpha", "schedule", "epochs", "lr"),
    "split": ("method", "expert_size", "projection_expert_size"),
    "router": ("kind", "width", "projection_width", "epochs", "lr"),
    "ztw": ("epochs", "lr"),
    "avit": ("depth", "epochs", "lr"),
    "quantize": ("weights",),
}
"""Each stage's options that name its folder: those that a variant may change."""

TUNED = ("finetune", "sparsify", "ztw", "avit")
"""Stages whose learning rate is a variant's: its longest training after the dense model."""

COMPRESSED = {"prune": "pruned", "distill": "distilled"}  # method in the tables, by the stage

Chain = list[tuple[str, Strict]]  # stages and their options


def folder_name(stage: str, cfg: Strict) -> str:
    """A stage's folder name: its naming options as key~value, joined by commas; those that are None
    do not apply."""
    named = {key: getattr(cfg, key) for key in STAGES[stage]}
    return ",".join(f"{k}~{_text(value)}" for k, value in named.items() if value is not None)


def _text(value: Any) -> str:
    """A value as people write it: 3 for 3.0, qkvo for a list of projections."""
    if isinstance(value, TransformerConfig):
        return f"{value.name}x{value.d_ff}"
    if isinstance(value, list):
        return "".join(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


@dataclass(frozen=True)
class Step:
    """One stage of a lineage."""

    stage: str
    cfg: Strict
    folder: PurePosixPath


@dataclass(frozen=True)
class Lineage:
    """All steps from the dense model to one variant's model, for one seed."""

    task: str
    seed: int
    method: str
    variant: str
    steps: tuple[Step, ...]
    rule: str  # the knob of the operating points: selection rule, confidence, depth; or "dense"

    @property
    def folder(self) -> PurePosixPath:
        """Folder of the last stage's model."""
        return self.steps[-1].folder

    def folder_of(self, stage: str) -> PurePosixPath:
        """Folder of one of its stages."""
        return next(step.folder for step in self.steps if step.stage == stage)

    def evaluation(self, part: str) -> PurePosixPath:
        """Table of the operating points on the `validation` or `test` split."""
        return self.folder / "evaluate" / part / f"{self.rule}.csv"


def lineages(config: Config, suite: Suite = "main") -> Iterator[Lineage]:
    """Dense, its fine-tuned reference and every variant of a suite, of each task and seed, and the
    compressed models that variants convert."""
    for name, task in config.tasks.items():
        for seed in config.seeds if task.variants_of(suite) else []:
            dense: Chain = [("dense", task.dense)]
            yield from _with_finetuned(name, seed, "dense", "dense", task, dense)
            for base in task.bases_of(suite):
                step = _base_step(task, base)
                method, chain = COMPRESSED[step[0]], [*dense, step]
                yield from _with_finetuned(name, seed, method, base, task, chain)
            for variant in task.variants_of(suite):
                method, rule = task.all_variants[variant].method, task.rule(variant)
                for chain in _chains(task, variant):
                    yield _lineage(name, seed, method, variant, chain, rule)


def trials(config: Config) -> Iterator[tuple[float, Lineage]]:
    """Every learning rate tried and its lineage, of each task and seed, and the dense models, which
    have none (0). The trials of a variant at all its rates bear its name."""
    for name, task in config.tasks.items():
        for seed in config.seeds if task.tuning else []:
            dense: Chain = [("dense", task.dense)]
            yield 0.0, _lineage(name, seed, "dense", "dense", dense)
            for variant, rates in task.tuning.items():
                for rate in rates:
                    yield from ((rate, x) for x in _trial(name, task, seed, variant, rate))


def _trial(name: str, task: TaskConfig, seed: int, variant: str, rate: float) -> Iterator[Lineage]:
    if variant in DENSE_VARIANTS:
        method, rule = "dense", "dense"
        chains = [[("dense", task.dense), ("finetune", task.finetune_config())]]
    else:
        method, rule = task.all_variants[variant].method, task.rule(variant)
        chains = list(_chains(task, variant))
    for chain in chains:
        changed = [
            (stage, cfg.model_copy(update={"lr": rate}) if stage in TUNED else cfg)
            for stage, cfg in chain
        ]
        yield _lineage(name, seed, method, variant, changed, rule)


def _with_finetuned(
    name: str, seed: int, method: str, variant: str, task: TaskConfig, chain: Chain
) -> Iterator[Lineage]:
    """A model without experts, and the same trained on for as long as a conversion takes."""
    yield _lineage(name, seed, method, variant, chain)
    finetune = ("finetune", task.finetune_config())
    yield _lineage(name, seed, method, f"{variant}{FINETUNED}", [*chain, finetune])


def _base_step(task: TaskConfig, base: str) -> tuple[str, Strict]:
    cfg = task.bases[base].step
    return cfg.kind, cfg


def _chains(task: TaskConfig, variant: str) -> Iterator[Chain]:
    """A variant's stages and their options; several times where one training is one operating
    point."""
    cfg, dense = task.all_variants[variant], ("dense", task.dense)
    if isinstance(cfg, HaltingVariant):
        for depth in cfg.depths:
            yield [dense, ("avit", AViTConfig(**task.avit.model_dump(), depth=depth))]
    elif isinstance(cfg, QuantizedVariant):
        yield [dense, ("quantize", QuantizeConfig(weights=cfg.quantize))]
    elif isinstance(cfg, ConversionVariant):
        yield _conversion(task, variant, cfg)
    else:
        yield [dense, ("ztw", task.ztw)]


def _conversion(task: TaskConfig, variant: str, cfg: ConversionVariant) -> Chain:
    chain: Chain = [("dense", task.dense)]
    if cfg.base is not None:
        chain.append(_base_step(task, cfg.base))
    stages = task.stages(variant)
    named = (stage for stage in STAGES if stage in Stages.model_fields)
    found = ((stage, getattr(stages, stage)) for stage in named)
    chain += [(stage, own) for stage, own in found if own is not None]
    if cfg.quantize is not None:
        chain.append(("quantize", QuantizeConfig(weights=cfg.quantize)))
    return chain


def _lineage(
    task: str, seed: int, method: str, variant: str, chain: Chain, rule: str = "dense"
) -> Lineage:
    folder = PurePosixPath("results/models") / task / f"seed~{seed}"
    steps = []
    for stage, cfg in chain:
        folder = folder / stage / folder_name(stage, cfg)
        steps.append(Step(stage, cfg, folder))
    return Lineage(task, seed, method, variant, tuple(steps), rule)


def stage_configs(config: Config) -> dict[str, dict[str, Any]]:
    """The options of every stage of a configuration, as `plain`, by the folder of its result.

    Raises:
        ConfigError: two compressed models of a task differ in nothing that names their folders.
    """
    lines = [line for suite in SUITES for line in lineages(config, suite)]
    lines += [line for _rate, line in trials(config)]
    found: dict[str, dict[str, Any]] = {}
    for task, step in ((line.task, step) for line in lines for step in line.steps):
        own = plain(step.cfg)
        other = found.setdefault(str(step.folder), own)
        if differing := [key for key in own if own[key] != other[key]]:
            raise ConfigError(
                f"tasks.{task}.bases: two differ in {', '.join(differing)} alone, and both would "
                f"lie in {step.folder}; change one of {', '.join(STAGES[step.stage])} too"
            )
    return found


def plain(cfg: Strict) -> dict[str, Any]:
    """Options as a sorted dict of plain values, whose text form is stable."""
    return dict(sorted(cfg.model_dump(mode="json").items()))
