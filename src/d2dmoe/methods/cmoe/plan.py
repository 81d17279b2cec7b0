"""CMoE's stages and checks."""

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.checks import need_divisor, need_section, trained_steps
from d2dmoe.methods.cmoe.options import CMoEConfig, CMoEVariant, TunedCMoEVariant

SECTION = "cmoe"


def chains(task: TaskConfig, variant: CMoEVariant | TunedCMoEVariant) -> list[Chain]:
    """One: what it begins with, then the experts; fine-tuning takes its passes from the former."""
    cfg = _config(task, variant)
    return [[*trained_steps(task, variant, cfg.epochs), ("cmoe", cfg)]]


def knob(task: TaskConfig, variant: CMoEVariant | TunedCMoEVariant) -> str:
    """Experts a token, the shared ones among them."""
    return "top_k"


def check(task: TaskConfig, name: str, variant: CMoEVariant | TunedCMoEVariant) -> None:
    """Sizes divide, and some experts are routed; raises ValueError for the first fault."""
    own = need_section(task, name, SECTION)
    d_ff, size = task.model.d_ff, task.clustering.expert_size
    need_divisor(name, "clustering.expert_size", size, d_ff)
    experts = d_ff // size
    if own.shared >= experts:
        raise ValueError(
            f"variant '{name}': cmoe.shared = {own.shared} leaves none of {experts} experts to "
            f"route; allowed: 0 to {experts - 1}"
        )
    if not own.shared < own.top_k <= experts:
        raise ValueError(
            f"variant '{name}': cmoe.top_k = {own.top_k} must be above cmoe.shared = "
            f"{own.shared} and at most {experts}, the number of experts"
        )
    if own.firing > d_ff:
        raise ValueError(
            f"variant '{name}': cmoe.firing = {own.firing} exceeds model.d_ff = {d_ff}"
        )
    if not own.epochs < task.epochs:
        raise ValueError(
            f"variant '{name}': cmoe.epochs = {own.epochs:g} must be below sparsify.epochs + "
            f"router.epochs = {task.epochs:g}, of which they are taken"
        )
    if most := [k for k in getattr(task.select, knob(task, variant)) if k > experts]:
        raise ValueError(
            f"variant '{name}': select.top_k = {most[0]} exceeds its {experts} experts; allowed: "
            f"1 to {experts}"
        )


def _config(task: TaskConfig, variant: CMoEVariant | TunedCMoEVariant) -> CMoEConfig:
    section = getattr(task, SECTION).model_dump()
    if variant.method == "cmoe":
        section["epochs"] = 0.0
    return CMoEConfig(**section, expert_size=task.clustering.expert_size)
