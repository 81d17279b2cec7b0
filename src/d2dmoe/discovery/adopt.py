"""Adopting the FFNs of a model in place as `ffn.FFN`, each proved, or refused by name.

Three numbers prove an FFN: its maps repeat their outputs, the probe's hidden vector is the
activation's over its whole range, and the model with the FFN in place repeats its own output and
that of every FFN on two examples. Whatever fails is put back.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.discovery import maps
from d2dmoe.discovery.examples import shuffled
from d2dmoe.discovery.places import Place, place_of
from d2dmoe.discovery.probe import Activated, Flow, Probe, activated
from d2dmoe.discovery.structure import Candidate, candidates
from d2dmoe.discovery.trace import TOLERANCE, Example, close, hooked, run, tensors_in
from d2dmoe.ffn import FFN
from d2dmoe.layers import Bypass, leave_fast_path
from d2dmoe.surgery import put


@dataclass
class Adoption:
    """What became of a model."""

    model: nn.Module
    ffns: dict[str, FFN] = field(default_factory=dict)  # adopted, by name
    refused: dict[str, str] = field(default_factory=dict)  # reasons, by the first map's name
    _replaced: list[tuple[str, Any]] = field(default_factory=list)

    def replace(self, name: str, module: nn.Module) -> None:
        """Put a module in place of the one of that name."""
        self._replaced.append((name, put(self.model, name, module)))

    def __len__(self) -> int:
        return len(self._replaced)

    def undo(self, kept: int = 0) -> None:
        """Put everything back but for the first `kept` modules that were replaced."""
        while len(self._replaced) > kept:
            name, old = self._replaced.pop()
            put(self.model, name, old)
            self.ffns.pop(name, None)
        leave_fast_path(self.model)


@dataclass(frozen=True)
class _Plan:
    """An FFN and where it is to go."""

    candidate: Candidate
    place: Place
    ffn: FFN

    @property
    def last(self) -> str:
        """The module that gives the FFN's output in the adopted model."""
        return self.place.name if self.place.whole else self.candidate.down

    def carry_out(self, adoption: Adoption) -> None:
        """The last maps first: an FFN holds the very modules that it replaces."""
        for name in self.place.bypassed:
            adoption.replace(name, Bypass())
        adoption.replace(self.place.name, self.ffn)
        adoption.ffns[self.place.name] = self.ffn


def adopt(model: nn.Module, example: Example) -> Adoption:
    """Replace the FFNs of a model, in place, by `ffn.FFN`s that use the same parameters; maps that
    are stored transposed or fused get new ones.

    Args:
        model: any module; its modes, dtypes, devices and frozen parameters stay as they are.
        example: what the model can be called with; a few tokens or one image are enough.
    """
    adoption = Adoption(model)
    plans = _plans(model, example, adoption.refused)
    if not plans:
        return adoption
    examples = _examples(model, example)
    before = [_outputs(model, e, [plan.candidate.down for plan in plans]) for e in examples]
    for plan in plans:
        plan.carry_out(adoption)
    leave_fast_path(model)
    if _problem(model, plans, examples, before):
        adoption.undo()
        _adopt_singly(plans, example, adoption)
    return adoption


def _adopt_singly(plans: list[_Plan], example: Example, adoption: Adoption) -> None:
    """Carry out those plans that leave the model's output as it is, and refuse the others."""
    model, done = adoption.model, list[_Plan]()
    for plan in plans:
        before = _outputs(model, example, [p.last for p in done] + [plan.candidate.down])
        kept = len(adoption)
        plan.carry_out(adoption)
        leave_fast_path(model)
        problem = _problem(model, [*done, plan], [example], [before])
        if problem:
            adoption.undo(kept)
            adoption.refused[plan.candidate.first[0]] = problem
        else:
            done.append(plan)


def _plans(model: nn.Module, example: Example, refused: dict[str, str]) -> list[_Plan]:
    found = candidates(model, example)
    probe = Probe(model, found, example)
    plans = []
    for candidate in found:
        plan = _plan(model, candidate, probe)
        if isinstance(plan, str):
            refused[candidate.first[0]] = plan
        else:
            plans.append(plan)
    return plans


def _plan(model: nn.Module, candidate: Candidate, probe: Probe) -> _Plan | str:
    flows = probe.flows[candidate]
    modules = [model.get_submodule(name) for name in (*candidate.first, candidate.down)]
    problem = next((p for p in map(maps.problem_of, modules) if p), None)
    if problem:
        return problem
    activations = {activated(flow) for flow in flows}
    about = activations.pop() if len(activations) == 1 else None
    if about is None:
        return _unknown_activation(model, flows)
    place = place_of(model, candidate, probe)
    if isinstance(place, str):
        return place
    linears = _linears(candidate, modules, flows[0])
    if isinstance(linears, str):
        return linears
    ffn = _ffn(linears, about, place)
    return _Plan(candidate, place, ffn.train(model.get_submodule(place.name).training))


def _unknown_activation(model: nn.Module, flows: list[Flow]) -> str:
    between = {type(model.get_submodule(p.name)).__name__: None for f in flows for p in f.between}
    seen = f" (there run {', '.join(between)})" if between else ""
    return f"what lies between its maps{seen} is no activation of {', '.join(ACTIVATIONS)} alone"


def _linears(candidate: Candidate, modules: list[Any], flow: Flow) -> list[nn.Linear] | str:
    """The maps as `nn.Linear`: W1, or gate and up in the order of the flow; then the last."""
    assert flow.hidden is not None and flow.y is not None
    *first, last = modules
    inputs = [flow.z] * len(first) + [flow.hidden.to(last.weight.dtype)]
    outs = [*flow.outs, flow.y]
    linears = []
    for module, z, out in zip(modules, inputs, outs, strict=True):
        linears += [linear] if (linear := maps.to_linear(module, z, out)) else []
    if len(linears) != len(modules):
        return "a map computes more than its weight and bias do"
    places = {(linear.weight.dtype, linear.weight.device) for linear in linears}
    if len(places) > 1:
        return "its maps have several dtypes or devices: move them to one"
    if candidate.fused:
        return [*maps.halves(linears[0]), linears[1]]
    return linears


def _ffn(linears: list[nn.Linear], about: Activated, place: Place) -> FFN:
    *first, down = linears
    gate = None if about.gate is None else first.pop(about.gate)
    rates = (place.dropout, place.hidden_dropout)
    return FFN(first[0], down, about.activation, gate, *rates)


def _examples(model: nn.Module, example: Example) -> list[Example]:
    """The example, and another of its shapes, where the model takes it."""
    other = shuffled(example)
    try:
        run(model, other)
    except Exception:  # of any kind: inputs may depend on each other
        return [example]
    return [example, other]


def _outputs(model: nn.Module, example: Example, names: list[str]) -> list[Tensor]:
    """The model's outputs, and those of the modules of these names at every call."""
    seen: list[Tensor] = []
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _args, out: seen.append(out.clone())
        )
        for name in names
    ]
    with hooked(*handles):
        outputs = tensors_in(run(model, example))
    return [*outputs, *seen]


def _problem(
    model: nn.Module, plans: list[_Plan], examples: list[Example], before: list[list[Tensor]]
) -> str | None:
    """Why the model is not its equal with the plans carried out, or None."""
    dtype = max((plan.ffn.up.weight.dtype for plan in plans), key=TOLERANCE.__getitem__)
    for example, old in zip(examples, before, strict=True):
        try:
            new = _outputs(model, example, [plan.last for plan in plans])
        except Exception as error:
            return f"the model does not run with it replaced ({type(error).__name__}: {error})"
        if len(new) != len(old) or not all(
            close(n, o, dtype) for n, o in zip(new, old, strict=True)
        ):
            return "the model's output changes with it replaced"
    return None
