"""ZTW's stages and checks."""

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.checks import need_epochs, need_exits, need_section
from d2dmoe.methods.ztw.options import ZTWVariant


def chains(task: TaskConfig, variant: ZTWVariant) -> list[Chain]:
    """One training, of heads on the dense reference: the backbone stays as it is, so it must be the
    better of the two dense models."""
    return [[task.finetune_step, ("ztw", getattr(task, variant.method))]]


def knob(task: TaskConfig, variant: ZTWVariant) -> str:
    """The confidence from which on a sample leaves."""
    return "confidence"


def check(task: TaskConfig, name: str, variant: ZTWVariant) -> None:
    """A classifier, as many passes as every variant; raises ValueError for the first fault."""
    own = need_section(task, name, "ztw")
    need_exits(task, name, own.every, "ztw")
    need_epochs(task, name, own.epochs, "ztw.epochs")
