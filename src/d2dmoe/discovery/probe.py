"""What lies between an FFN's maps, proved: values of our choice go in, and what comes out tells.

The first maps' outputs are replaced by pre-activations from the whole range of an activation, so
that neither weights nor inputs need to reach it; the input of the last map then says which function
was applied, and the modules that ran between and around the maps say where.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from d2dmoe.activations import ACTIVATIONS, torch_function
from d2dmoe.discovery.maps import last
from d2dmoe.discovery.structure import Candidate
from d2dmoe.discovery.trace import Example, hooked, only_tensor, run

RANGE = 12.0  # pre-activations reach from -RANGE to RANGE: past every bend of an activation
NEAR = 1e-3  # to the identity
DROPOUTS = (functional.dropout, torch.dropout)


class Passage(NamedTuple):
    """One call of a module; times are those of the probe's clock."""

    name: str
    start: int
    end: int
    z: Tensor | None  # its only argument, None if it has others
    out: Any


@dataclass
class Flow:
    """What ran through a candidate at one call; vectors are the last dimension of all tensors."""

    start: int
    z: Tensor  # the first maps' input
    outs: list[Tensor] = field(default_factory=list)  # the first maps' own outputs
    pre: list[Tensor] = field(default_factory=list)  # what they were replaced by
    down: int = 0  # when the last map ran
    hidden: Tensor | None = None  # its input
    y: Tensor | None = None  # its output
    between: list[Passage] = field(default_factory=list)

    @property
    def halves(self) -> Sequence[Tensor]:
        """Pre-activations, or gate and up in either order: [..., d_ff] each."""
        if self.hidden is not None and self.pre[0].shape[-1] == 2 * self.hidden.shape[-1]:
            return self.pre[0].chunk(2, dim=-1)
        return self.pre


class Activated(NamedTuple):
    """What the first maps' outputs became."""

    activation: str
    gate: int | None  # which of the two outputs is activated; None if there is one
    scale: float = 1.0  # hidden = scale · act + shift, as StarReLU's (Yu et al. 2022)
    shift: float = 0.0

    def alike(self, other: "Activated | None") -> bool:
        """Whether another call had the same, up to rounding of scale and shift."""
        return other is not None and self[:2] == other[:2]


def activated(flow: Flow) -> Activated | None:
    """The activation that made the flow's hidden vector of its pre-activations."""
    one, *other = flow.halves
    for name in ACTIVATIONS:
        act = torch_function(name)
        if not other and _is(flow.hidden, act(one), torch.ones_like(one)):
            return Activated(name, None)
        if other and _is(flow.hidden, act(one) * other[0], other[0]):
            return Activated(name, 0)
        if other and _is(flow.hidden, act(other[0]) * one, one):
            return Activated(name, 1)
    return None if other else _scaled(flow, one)


def _scaled(flow: Flow, pre: Tensor) -> Activated | None:
    """The activation of which the hidden vector is a multiple, and a constant."""
    if flow.hidden is None or flow.hidden.numel() != pre.numel():
        return None
    hidden = flow.hidden.reshape(pre.shape).double()
    for name in ACTIVATIONS:
        act = torch_function(name)(pre).double()
        covariance = ((act - act.mean()) * (hidden - hidden.mean())).mean()
        scale = covariance / act.var(correction=0)
        shift = hidden.mean() - scale * act.mean()
        norm = max(abs(scale - 1), abs(shift)) < NEAR  # with fresh statistics, which training moves
        if scale != 0 and not norm and _is(flow.hidden, scale * act + shift, torch.ones_like(act)):
            return Activated(name, None, float(scale), float(shift))
    return None


def _is(hidden: Tensor | None, expected: Tensor, scale: Tensor) -> bool:
    """Whether a hidden vector is what an activation makes, up to rounding: kinds of GELU differ by
    5e-4, and in the tail by far more than rounding."""
    if hidden is None or hidden.numel() != expected.numel():
        return False
    expected = expected.reshape(hidden.shape).float()
    allowed = 8 * torch.finfo(hidden.dtype).eps * expected.abs() + 2e-5 * scale.abs().reshape(
        hidden.shape
    )
    return bool(((hidden.float() - expected).abs() <= allowed).all())


def pre_activations(like: Tensor, seed: int) -> Tensor:
    """Values from the whole range, in random order; at least of single precision."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.linspace(-RANGE, RANGE, like.numel(), device="cpu")
    values = values[torch.randperm(like.numel(), generator=generator, device="cpu")].reshape(
        like.shape
    )
    return values.to(like.device, torch.promote_types(like.dtype, torch.float32))


class Probe(TorchFunctionMode):
    """One run of a model with its candidates' pre-activations replaced.

    Attributes:
        flows: of each candidate, one for each call.
        around: passages of the modules that hold its first map, by name.
        dropouts: time and rate of every dropout, also of those that are no modules.
    """

    def __init__(self, model: nn.Module, found: Sequence[Candidate], example: Example):
        super().__init__()
        self.flows: dict[Candidate, list[Flow]] = {candidate: [] for candidate in found}
        self.around: dict[str, list[Passage]] = defaultdict(list)
        self.dropouts: list[tuple[int, float]] = []
        self._holders = {name for candidate in found for name in holders(candidate)}
        self._clock = 0
        self._open: Flow | None = None
        self._entered: list[tuple[int, Tensor | None] | None] = []
        with self._hooks(model), self:
            run(model, example)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DROPOUTS:
            rate = (kwargs or {}).get("p", args[1] if len(args) > 1 else 0.5)
            if rate > 0:
                self.dropouts.append((self._tick(), rate))
        return func(*args, **(kwargs or {}))

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    @contextmanager
    def _hooks(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for candidate in self.flows:
                down = model.get_submodule(candidate.down)
                handles = [down.register_forward_pre_hook(self._arrive(candidate))]
                handles.append(down.register_forward_hook(self._leave(candidate)))
                for index, name in enumerate(candidate.first):
                    first = model.get_submodule(name)
                    hook = self._replace(candidate, index)
                    handles.append(first.register_forward_hook(hook, with_kwargs=True))
                stack.enter_context(hooked(*handles))
            for name, module in model.named_modules():
                enter = module.register_forward_pre_hook(self._enter(name), with_kwargs=True)
                leave = module.register_forward_hook(self._exit(name))
                stack.enter_context(hooked(enter, leave))
            yield

    def _replace(self, candidate: Candidate, index: int) -> Any:
        def hook(_module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> Tensor:
            if index == 0:
                z = only_tensor(args, kwargs)
                assert z is not None  # as in the trace
                self._open = Flow(self._tick(), last(z.clone(), candidate.features))
                self.flows[candidate].append(self._open)
            flow = self.flows[candidate][-1]
            values = pre_activations(out, index)
            flow.outs.append(last(out.clone(), candidate.features))
            flow.pre.append(last(values, candidate.features))
            return values.clone()

        return hook

    def _arrive(self, candidate: Candidate) -> Any:
        def hook(module: nn.Module, args: tuple) -> tuple:
            flow = self.flows[candidate][-1]
            flow.hidden = last(args[0].clone(), candidate.features)
            flow.down, self._open = self._tick(), None
            return (args[0].to(module.weight.dtype), *args[1:])

        return hook

    def _leave(self, candidate: Candidate) -> Any:
        def hook(_module: nn.Module, _args: tuple, out: Tensor) -> None:
            self.flows[candidate][-1].y = last(out.clone(), candidate.features)

        return hook

    def _enter(self, name: str) -> Any:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen = self._open is not None or name in self._holders
            z = only_tensor(args, kwargs) if seen else None
            entered = (self._tick(), None if z is None or kwargs else z.clone())
            self._entered.append(entered if seen else None)

        return hook

    def _exit(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: tuple, out: Any) -> None:
            entered = self._entered.pop()
            if entered is None:
                return
            out = out.clone() if isinstance(out, Tensor) else None
            passage = Passage(name, entered[0], self._tick(), entered[1], out)
            if name in self._holders:
                self.around[name].append(passage)
            elif self._open is not None and passage.start > self._open.start:
                self._open.between.append(passage)

        return hook


def holders(candidate: Candidate) -> list[str]:
    """Modules that hold the first map, itself included, by name: from the smallest that holds all
    of the candidate's maps to the smallest; the model as a whole is none."""
    first, down = candidate.first[0].split("."), candidate.down.split(".")
    shared = 0
    while shared < min(len(first), len(down)) and all(
        name.split(".")[: shared + 1] == first[: shared + 1]
        for name in (*candidate.first, candidate.down)
    ):
        shared += 1
    return [".".join(first[:depth]) for depth in range(max(shared, 1), len(first) + 1)]
