"""The FFNs of a model as `ffn.FFN`s in its place, each proved, or refused by name.

Three numbers prove an FFN: its maps repeat their outputs, the probe's hidden vector is the
activation's over its whole range, and the model repeats its outputs with the FFN in place.
"""

from typing import Any

import torch
from torch import nn

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.discovery import maps
from d2dmoe.discovery.adopt import Adoption, Step, adopt
from d2dmoe.discovery.places import Place, place_of
from d2dmoe.discovery.probe import Activated, Flow, Probe, activated
from d2dmoe.discovery.structure import Candidate, candidates
from d2dmoe.discovery.trace import TOLERANCE, Example, close, run
from d2dmoe.ffn import FFN
from d2dmoe.layers import Bypass, ChannelsFirst


def adopt_ffns(model: nn.Module, example: Example) -> Adoption:
    """Replace the FFNs of a model, in place, by `ffn.FFN`s that use the same parameters; maps that
    are stored transposed or fused get new ones.

    Args:
        model: any module; its modes, dtypes, devices and frozen parameters stay as they are.
        example: what the model can be called with; a few tokens or one image are enough.
    """
    found = candidates(model, example)
    if not found:
        return Adoption(model)
    steps: dict[Candidate, Step | str | None] = {c: _problem(model, c) for c in found}
    sound = [candidate for candidate, problem in steps.items() if problem is None]
    probe = _probe(model, sound, example)
    for candidate in sound:
        steps[candidate] = probe if isinstance(probe, str) else _step(model, candidate, probe)
    adoption = adopt(model, [s for s in steps.values() if isinstance(s, Step)], example)
    refused = {c.first[0]: step for c, step in steps.items() if isinstance(step, str)}
    refused |= adoption.refused
    adoption.refused = {c.first[0]: refused[c.first[0]] for c in found if c.first[0] in refused}
    return adoption


def _modules(model: nn.Module, candidate: Candidate) -> list[nn.Module]:
    return [model.get_submodule(name) for name in (*candidate.first, candidate.down)]


def _problem(model: nn.Module, candidate: Candidate) -> str | None:
    """Why the maps of a candidate cannot be taken over, or None."""
    modules = _modules(model, candidate)
    other = maps.shared_with(model, modules)
    if other is not None:
        return maps.SHARED.format(other)
    return next(filter(None, map(maps.problem_of, modules)), None)


def _probe(model: nn.Module, sound: list[Candidate], example: Example) -> Probe | str:
    """The probe of candidates, or why there is none."""
    try:
        return Probe(model, sound, example)
    except Exception as error:  # of any kind: the model is anyone's
        return (
            "the model does not run with other values between its maps "
            f"({type(error).__name__}: {error})"
        )


def _step(model: nn.Module, candidate: Candidate, probe: Probe) -> Step | str:
    """What makes an FFN of a candidate, or why it is none."""
    flows, modules = probe.flows[candidate], _modules(model, candidate)
    if not all(flow.z.isfinite().all() for flow in flows):
        return "it is called with NaN or infinity: look for them in the example and the weights"
    about = activated(flows[0])
    if about is None or any(not about.alike(activated(flow)) for flow in flows[1:]):
        return _unknown_activation(model, flows)
    place = place_of(model, candidate, probe)
    if isinstance(place, str):
        return place
    linears = _linears(candidate, modules, flows[0])
    if isinstance(linears, str):
        return linears
    ffn: nn.Module = _ffn(linears, about, place)
    if candidate.features != -1:
        ffn = ChannelsFirst(ffn, candidate.features)
    replaced = model.get_submodule(place.name)
    if place.whole and not _repeats(ffn, replaced, flows[0], candidate):
        return "on random input the block gives another output than its maps and activation do"
    # The last maps first, for the FFN holds the very modules that it replaces.
    modules_in = [(name, Bypass()) for name in place.bypassed]
    output = (candidate.down, place.name if place.whole else candidate.down)
    step = Step(
        candidate.first[0], (*modules_in, (place.name, ffn.train(replaced.training))), output
    )
    return step


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
    if len({linear.weight.device for linear in linears}) > 1:
        return "its maps lie on several devices: move them to one"
    if candidate.fused:
        return [*maps.halves(linears[0]), linears[1]]
    return linears


def _ffn(linears: list[nn.Linear], about: Activated, place: Place) -> FFN:
    *first, down = linears
    gate = None if about.gate is None else first.pop(about.gate)
    if (about.scale, about.shift) != (1.0, 0.0):
        down = maps.folded(down, about.scale, about.shift)
    return FFN(first[0], down, about.activation, gate, place.dropout, place.hidden_dropout)


def _repeats(ffn: nn.Module, replaced: nn.Module, flow: Flow, candidate: Candidate) -> bool:
    """Whether an FFN gives a module's output on random input."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(flow.z.shape, generator=generator, device="cpu").to(flow.z)
    example = Example(((noise * flow.z.std()).movedim(-1, candidate.features),), {})
    dtypes = {parameter.dtype for parameter in ffn.parameters()}
    tolerance = max(TOLERANCE[dtype] for dtype in dtypes)
    return close(run(ffn, example), run(replaced, example), tolerance)
