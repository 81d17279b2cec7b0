"""A-ViT's stages and checks."""

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.avit.options import AViTConfig, AViTVariant
from d2dmoe.methods.checks import need_epochs, need_section
from d2dmoe.models import ARCHITECTURES


def chains(task: TaskConfig, variant: AViTVariant) -> list[Chain]:
    """A training for every target depth."""
    options = getattr(task, variant.method).model_dump()
    return [[("avit", AViTConfig(**options, depth=depth))] for depth in variant.depths]


def knob(task: TaskConfig, variant: AViTVariant) -> str:
    """The target depth."""
    return "depth"


def check(task: TaskConfig, name: str, variant: AViTVariant) -> None:
    """A ViT, as many passes as every variant; raises ValueError for the first fault."""
    own = need_section(task, name, "avit")
    if not ARCHITECTURES[task.model.architecture].halts:
        raise ValueError(f"variant '{name}': avit halts the tokens of images; leave it out")
    need_epochs(task, name, own.epochs, "avit.epochs")
