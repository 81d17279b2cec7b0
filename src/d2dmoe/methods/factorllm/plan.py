"""FactorLLM's stages and checks."""

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.checks import need_divisor, need_epochs, need_section
from d2dmoe.methods.factorllm.options import FactorLLMConfig, FactorLLMVariant


def chains(task: TaskConfig, variant: FactorLLMVariant) -> list[Chain]:
    """A training for every number of experts."""
    options = getattr(task, variant.method).model_dump()
    return [[("factorllm", FactorLLMConfig(**options, active=k))] for k in variant.active]


def knob(task: TaskConfig, variant: FactorLLMVariant) -> str:
    """The number of experts that a model was trained to run."""
    return "factors"


def check(task: TaskConfig, name: str, variant: FactorLLMVariant) -> None:
    """Sizes divide, as many passes as every variant; raises ValueError for the first fault."""
    own = need_section(task, name, "factorllm")
    need_divisor(name, "factorllm.experts", own.experts, task.model.d_ff)
    if max(variant.active) > own.experts:
        raise ValueError(
            f"variant '{name}': active = {max(variant.active)} exceeds factorllm.experts = "
            f"{own.experts}"
        )
    need_epochs(task, name, own.epochs, "factorllm.epochs")
