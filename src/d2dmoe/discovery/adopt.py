"""Replacing modules of a model, in place, by their equals; whatever proves to be none goes back.

The model with the new modules has to repeat its own outputs, and those of every module that was
replaced, on an example and on another of its shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from d2dmoe.discovery.examples import shuffled
from d2dmoe.discovery.trace import TOLERANCE, Example, close, hooked, run, tensors_in
from d2dmoe.layers import leave_fast_path
from d2dmoe.surgery import put

NAN = "the model gives NaN for the example: look for NaN in it and in the weights"


class Step(NamedTuple):
    """Modules that are to be replaced together."""

    name: str  # by which it is refused
    modules: tuple[tuple[str, nn.Module], ...]  # new ones by name, in the order of the replacements
    output: tuple[str, str]  # whose output must stay: the module's name before and after

    @property
    def tolerance(self) -> float:
        dtypes = {p.dtype for _, module in self.modules for p in module.parameters()}
        return max((TOLERANCE[dtype] for dtype in dtypes), default=0.0)


@dataclass
class Adoption:
    """What became of a model."""

    model: nn.Module
    done: list[Step] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # reasons by name
    _replaced: list[tuple[str, Any]] = field(default_factory=list)

    def carry_out(self, step: Step) -> None:
        for name, module in step.modules:
            self._replaced.append((name, put(self.model, name, module)))
        self.done.append(step)
        leave_fast_path(self.model)

    def undo(self, kept: int = 0) -> None:
        """Put everything back but for the first `kept` steps."""
        while len(self.done) > kept:
            for _ in self.done.pop().modules:
                put(self.model, *self._replaced.pop())
        leave_fast_path(self.model)


def adopt(model: nn.Module, steps: Sequence[Step], example: Example) -> Adoption:
    """Carry out all steps that leave the model what it is, and refuse the others."""
    adoption = Adoption(model)
    if not steps:
        return adoption
    examples = _examples(model, example)
    before = [_outputs(model, e, [step.output[0] for step in steps]) for e in examples]
    for step in steps:
        adoption.carry_out(step)
    if _problem(adoption, examples, before):
        adoption.undo()
        problem = _problem(adoption, examples, [_outputs(model, e, []) for e in examples])
        if problem:  # of the model as it was
            why = problem if problem == NAN else "the model gives other outputs at every call"
            adoption.refused = dict.fromkeys((step.name for step in steps), why)
            return adoption
        for step in steps:
            _try(step, adoption, examples)
    return adoption


def _try(step: Step, adoption: Adoption, examples: list[Example]) -> None:
    names = [s.output[1] for s in adoption.done] + [step.output[0]]
    before = [_outputs(adoption.model, example, names) for example in examples]
    adoption.carry_out(step)
    problem = _problem(adoption, examples, before)
    if problem:
        adoption.undo(len(adoption.done) - 1)
        adoption.refused[step.name] = problem


def _examples(model: nn.Module, example: Example) -> list[Example]:
    """The example, and another of its shapes where the model takes it."""
    other = shuffled(example)
    try:
        run(model, other)
    except Exception:  # of any kind: inputs may depend on each other
        return [example]
    return [example, other]


def _outputs(model: nn.Module, example: Example, names: Sequence[str]) -> list[Tensor]:
    """The model's outputs, and those of the modules of these names at every call."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, _args: tuple, out: Any) -> None:
        seen.extend(tensor.clone() for tensor in tensors_in(out)[:1])

    handles = [model.get_submodule(name).register_forward_hook(hook) for name in names]
    with hooked(*handles):
        outputs = tensors_in(run(model, example))
    return [*outputs, *seen]


def _problem(adoption: Adoption, examples: list[Example], before: list[list[Tensor]]) -> str | None:
    """Why the model is not its equal after these steps, or None."""
    tolerance = max((step.tolerance for step in adoption.done), default=0.0)
    for example, old in zip(examples, before, strict=True):
        try:
            new = _outputs(adoption.model, example, [step.output[1] for step in adoption.done])
        except Exception as error:  # of any kind: the model is anyone's
            return f"the model does not run with it replaced ({type(error).__name__}: {error})"
        if len(new) != len(old):
            return "the model calls other modules with it replaced"
        if any(o.isnan().any() for o in old):
            return NAN
        if not all(close(n, o, tolerance) for n, o in zip(new, old, strict=True)):
            return "the model's output changes with it replaced"
    return None
