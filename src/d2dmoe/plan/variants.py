"""What a task's variants come to, asked of their methods."""

from types import ModuleType

from d2dmoe.config.task import SUITES, Chain, Suite, TaskConfig
from d2dmoe.config.variant import DENSE_VARIANTS, FINETUNED, Variant
from d2dmoe.lookup import module_named
from d2dmoe.methods import METHODS
from d2dmoe.stages import STAGES


def method_plan(variant: Variant) -> ModuleType:
    """The functions by which a variant's method is planned; see `methods.Method`."""
    return module_named(METHODS[variant.method].plan)


def chains(task: TaskConfig, name: str) -> list[Chain]:
    """The stages of each training of a variant, from the dense model on, with their options; a
    method's chain may begin with a dense model of its own."""
    variant, first = task.all_variants[name], task.dense_step
    own = method_plan(variant).chains(task, variant)
    return [chain if chain and chain[0][0] == first[0] else [first, *chain] for chain in own]


def knob_of(task: TaskConfig, name: str) -> str:
    """What a variant's operating points differ in."""
    variant = task.all_variants[name]
    return method_plan(variant).knob(task, variant)


def has_experts(task: TaskConfig, name: str) -> bool:
    """Whether a variant, of any suite, has experts; false where there is no such variant."""
    variant = task.all_variants.get(name)
    return variant is not None and METHODS[variant.method].experts


def labels(task: TaskConfig) -> dict[str, str]:
    """Names in the legends of all that has a curve or a point of its own."""
    bases = {name: base.label for name, base in task.bases.items()}
    trained_on = {f"{name}{FINETUNED}": f"{label}, fine-tuned" for name, label in bases.items()}
    variants = {name: variant.label for name, variant in task.all_variants.items()}
    return DENSE_VARIANTS | bases | trained_on | variants


def variants_of(task: TaskConfig, suite: Suite) -> list[str]:
    """The variants that a suite runs: its own, and those that its figures compare with."""
    if suite == SUITES[0]:
        return list(task.variants)
    if suite not in task.suites:
        return []
    own = task.suites[suite]
    named = {name for names in own.figures.variants().values() for name in names}
    return [name for name in task.variants if name in named] + list(own.variants)


def bases_of(task: TaskConfig, suite: Suite) -> list[str]:
    """The compressed models that a suite's variants convert, or its figures compare."""
    used = {getattr(task.all_variants[name], "base", None) for name in variants_of(task, suite)}
    if suite in task.suites:
        named = task.suites[suite].figures.variants().values()
        used |= {name for names in named for name in names}
    return [name for name in task.bases if name in used]


def rate(task: TaskConfig, name: str) -> float:
    """Peak learning rate of a variant's, or a compressed model's, longest training after the dense
    model; 0 if it has none."""
    if name in task.bases:
        return task.bases[name].lr
    if name not in task.all_variants:  # a dense or compressed model, trained on
        return task.finetune_step[1].lr
    chain = chains(task, name)[0]
    index = _tuned(chain)
    return 0.0 if index is None else chain[index][1].lr


def with_rate(chain: Chain, lr: float) -> Chain:
    """A chain whose longest training has another learning rate."""
    changed, index = list(chain), _tuned(chain)
    if index is not None:
        stage, cfg = chain[index]
        changed[index] = stage, cfg.model_copy(update={"lr": lr})
    return changed


def _tuned(chain: Chain) -> int | None:
    """Which step has the learning rate that is the variant's: the last such training."""
    return max((i for i, (stage, _) in enumerate(chain) if STAGES[stage].tuned), default=None)
