"""Stages and checks of conversions into experts."""

from dataclasses import dataclass, fields

from d2dmoe.config.compression import PruneConfig, QuantizeConfig, remaining
from d2dmoe.config.stages import (
    ClusteringConfig,
    ProjectionsConfig,
    RouterConfig,
    SparsifyConfig,
    TuneConfig,
)
from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods import rule_of
from d2dmoe.methods.checks import need_divisor, need_epochs
from d2dmoe.methods.conversion.options import ConversionVariant
from d2dmoe.selection_rules import RULES


@dataclass(frozen=True)
class Conversion:
    """A conversion's stages, resolved, in their order.

    Their rates are not checked here but in `plan.checks`, which knows the keys that they come from.
    """

    projections: ProjectionsConfig | None
    sparsify: SparsifyConfig
    clustering: ClusteringConfig
    router: RouterConfig
    tune: TuneConfig | None

    @property
    def chain(self) -> Chain:
        """The stages that there are."""
        named = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(stage, cfg) for stage, cfg in named if cfg is not None]

    @property
    def epochs(self) -> float:
        """Passes over the data of all stages together."""
        trained = (self.projections, self.sparsify, self.router, self.tune)
        return round(sum(cfg.epochs for cfg in trained if cfg), 10)


def conversion(task: TaskConfig, variant: ConversionVariant) -> Conversion:
    """The task's stages, then what the method implies, then the variant's changes.

    Imitation of attention projections, and fine-tuning of the routed model, take their passes from
    sparsification's.
    """
    names = [field.name for field in fields(Conversion)]
    implied = {stage: dict(variant.implied.get(stage, {})) for stage in names}
    if variant.projections is None:
        implied["clustering"]["projection_expert_size"] = None
        implied["router"]["projection_width"] = None
    extra = {
        stage: _change(getattr(task, stage), {}, getattr(variant, stage))
        for stage in ("projections", "tune")
        if getattr(variant, stage) is not None
    }
    if extra:
        left = round(task.sparsify.epochs - sum(cfg.epochs for cfg in extra.values()), 10)
        implied["sparsify"]["epochs"] = max(0.0, left)
    changed = {
        stage: _change(getattr(task, stage), implied[stage], getattr(variant, stage))
        for stage in ("sparsify", "clustering", "router")
    }
    return Conversion(projections=extra.get("projections"), tune=extra.get("tune"), **changed)


def chains(task: TaskConfig, variant: ConversionVariant) -> list[Chain]:
    """One: the dense or compressed model's, the conversion's, and quantisation where asked for."""
    chain: Chain = [] if variant.base is None else [task.base_step(variant.base)]
    chain += conversion(task, variant).chain
    if variant.quantize is not None:
        chain.append(("quantize", QuantizeConfig(weights=variant.quantize)))
    return [chain]


def knob(task: TaskConfig, variant: ConversionVariant) -> str:
    """The selection rule, or the budgets that one is calibrated to."""
    return variant.select or variant.rule


def check(task: TaskConfig, name: str, variant: ConversionVariant) -> None:
    """Sizes divide, as many passes as every variant; raises ValueError for the first fault."""
    if variant.projections is not None and task.projections is None:
        raise ValueError(f"variant '{name}': the task has no section projections")
    if variant.tune is not None and task.tune is None:
        raise ValueError(f"variant '{name}': the task has no section tune")
    stages, rule = conversion(task, variant), rule_of(knob(task, variant))
    assert rule is not None  # its models have experts
    d_ff, size = ffn_width(task, name, variant), stages.clustering.expert_size
    need_divisor(name, "clustering.expert_size", size, d_ff)
    most = max(getattr(task.select, rule.name), default=0)
    if rule.whole and most > d_ff // size:
        raise ValueError(
            f"variant '{name}': select.{rule.name} = {most} exceeds its "
            f"{d_ff // size} experts; allowed: 1 to {d_ff // size}"
        )
    if stages.projections:
        _check_projections(name, stages, stages.projections.multiple, rule.name)
    need_epochs(task, name, stages.epochs, "projections + sparsify + router + tune epochs")


def ffn_width(task: TaskConfig, name: str, variant: ConversionVariant) -> int:
    """Hidden neurons of an FFN of the model that a variant converts.

    Raises:
        ValueError: its base is not defined.
    """
    if variant.base is None:
        return task.model.d_ff
    if variant.base not in task.bases:
        raise ValueError(
            f"variant '{name}': base = '{variant.base}' is not defined; defined in bases: "
            f"{list(task.bases) or 'none'}"
        )
    base = task.bases[variant.base]
    if not isinstance(base, PruneConfig):
        return base.model.d_ff
    return remaining(task.model.d_ff, base.neurons)


def _check_projections(name: str, stages: Conversion, multiple: int, rule: str) -> None:
    size = stages.clustering.projection_expert_size
    if size is None or stages.router.projection_width is None:
        raise ValueError(
            f"variant '{name}' converts attention projections: give "
            "clustering.projection_expert_size and router.projection_width"
        )
    if multiple % size:
        raise ValueError(
            f"variant '{name}': clustering.projection_expert_size = {size} must divide "
            f"projections.multiple = {multiple}"
        )
    if RULES[rule].whole:
        raise ValueError(
            f"variant '{name}': {rule} selects as many experts in every layer, and attention "
            f"projections have fewer; use {' or '.join(n for n, r in RULES.items() if not r.whole)}"
        )


def _change(stage, implied, changes):
    return stage.model_copy(update=implied | changes.model_dump(exclude_none=True))
