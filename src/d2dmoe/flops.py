"""Cost of inference in FLOPs per sample; a multiply–add counts as 2.

One convention for every method: matrix products and convolutions count, as
`torch.utils.flop_counter` counts them; element-wise work (activations, norms, the comparison with
τ) does not. Routers always count, experts by the number really executed. Padding never counts: a
sample costs what it would cost alone. Causal attention counts the whole square of token pairs, as
the counter does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from d2dmoe.ffn import FFN
from d2dmoe.formulas import ffn_flops
from d2dmoe.inputs import Inputs
from d2dmoe.moe import MoE, watch_selections
from d2dmoe.surgery import find, watch


def maps_flops(module: nn.Module) -> int:
    """All linear maps of a module, per token that passes each of them once."""
    return sum(2 * m.in_features * m.out_features for m in find(module, nn.Linear).values())


@dataclass(frozen=True)
class LayerCost:
    """Cost of one FFN or MoE layer."""

    tokens: float  # per sample
    num_experts: int  # 1 for a dense FFN
    expert: int  # FLOPs per token and executed expert
    router: int  # FLOPs per token

    @property
    def dense(self) -> float:
        """FLOPs per sample of the FFN that this layer is or was."""
        return self.tokens * self.num_experts * self.expert

    def total(self, executed: float) -> float:
        """FLOPs per sample when the sample's tokens run `executed` experts in all."""
        return self.tokens * self.router + executed * self.expert


@dataclass(frozen=True)
class ModelCost:
    """Cost of a model: what is outside of the FFNs, and each FFN or MoE layer."""

    fixed: float  # FLOPs per sample
    layers: dict[str, LayerCost]  # by the layer's name

    @property
    def tokens(self) -> float:
        """Tokens per sample, as the FFNs see them."""
        return max(layer.tokens for layer in self.layers.values())

    @property
    def dense(self) -> float:
        """FLOPs per sample of the dense model."""
        return self.fixed + sum(layer.dense for layer in self.layers.values())

    def total(self, executed: dict[str, float]) -> float:
        """FLOPs per sample, given the experts that a sample's tokens run in each layer."""
        return self.fixed + sum(layer.total(executed[name]) for name, layer in self.layers.items())


def count(model: nn.Module, inputs: Inputs, args: tuple[Any, ...] = ()) -> int:
    """FLOPs of one forward of the model, by torch's counter; `args` are positional arguments.

    Fused kernels, of attention and of our own layers, hide their products from the counter, so they
    are switched off: every expert runs.
    """
    fast_path, training = torch.backends.mha.get_fastpath_enabled(), model.training
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()  # a forward must not move the statistics of batch norms
    try:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _unfused(model), counter:
            model(*args, **inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        model.train(training)
    return counter.get_total_flops()


@contextmanager
def _unfused(model: nn.Module) -> Iterator[None]:
    """Let experts be computed by matrix products alone, and routers where every expert runs too:
    they do where something watches the selections."""
    backends = [moe.backend for moe in find(model, MoE).values()]
    names = [backend.name for backend in backends]
    for backend in backends:
        backend.name = "dense"
    try:
        with watch_selections(model):
            yield
    finally:
        for backend, name in zip(backends, names, strict=True):
            backend.name = name


def model_cost(model: nn.Module, sample: Inputs, args: tuple[Any, ...] = ()) -> ModelCost:
    """Cost of a dense, split or routed model, from one sample [1, ...] without padding.

    A layer that a forward calls several times, as those that share weights, has the tokens of all
    calls; one that it does not call has none.
    """
    ffns: dict[str, Any] = find(model, FFN) | find(model, MoE)
    tokens = dict.fromkeys(ffns, 0)
    names = {id(layer): name for name, layer in ffns.items()}

    def see(layer: FFN | MoE, z: Tensor, _output: Tensor) -> None:
        tokens[names[id(layer)]] += z.numel() // layer.d_model

    with watch(ffns, see):
        total = count(model, sample, args)
    layers = {name: _layer_cost(layer, tokens[name]) for name, layer in ffns.items()}
    # The counted forward runs every expert, and the router where there is one.
    inside = sum(layer.dense + layer.tokens * layer.router for layer in layers.values())
    return ModelCost(fixed=total - inside, layers=layers)


def mean_cost(model: nn.Module, sample: Callable[[int], Inputs], lengths: Tensor) -> ModelCost:
    """Mean cost over samples of several lengths.

    FLOPs are a polynomial of the second degree in the length: attention is quadratic, all else
    linear or constant. So three counts determine those of all lengths.

    Args:
        model: dense, split or routed.
        sample: gives a sample of so many tokens, [1, length].
        lengths: tokens of each sample, integers [samples].
    """
    if (lengths == lengths[0]).all():
        return model_cost(model, sample(int(lengths[0])))
    costs = [model_cost(model, sample(n)) for n in (1, 2, 3)]
    one, two, three = (cost.fixed for cost in costs)
    fixed = at_lengths(one, two, three, lengths)
    layers = {
        name: replace(layer, tokens=layer.tokens * _mean(lengths))
        for name, layer in costs[0].layers.items()
    }
    return ModelCost(fixed=_mean(fixed), layers=layers)


def at_lengths(
    first: float | Tensor, second: float | Tensor, third: float | Tensor, lengths: Tensor
) -> Tensor:
    """FLOPs of samples of these lengths, integers [samples], from those of 1, 2 and 3 tokens; these
    may be [..., 1]."""
    steps = lengths.long() - 1  # Newton's form, in integers and so exact
    growth = steps * (second - first) + steps * (steps - 1) // 2 * (third - 2 * second + first)
    return first + growth


def _mean(values: Tensor) -> float:
    return int(values.sum()) / len(values)


def _layer_cost(layer: FFN | MoE, tokens: int) -> LayerCost:
    gated = layer.gate is not None
    if isinstance(layer, FFN):
        expert = ffn_flops(layer.d_model, layer.d_ff, gated, layer.d_out)
        return LayerCost(tokens, 1, expert, router=0)
    return LayerCost(
        tokens,
        layer.num_experts,
        expert=ffn_flops(layer.d_model, layer.expert_size, gated, layer.d_out),
        router=maps_flops(layer.router) if layer.router else 0,
    )
