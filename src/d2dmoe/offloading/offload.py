"""A model whose experts lie in host memory: the public call."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from d2dmoe.errors import UserError
from d2dmoe.moe import MoE
from d2dmoe.offloading.layer import OffloadedMoE, Traffic, check_offloadable
from d2dmoe.offloading.memory import Memory
from d2dmoe.offloading.misses import Misses, misses_of
from d2dmoe.offloading.recording import record, routed_layers, successors
from d2dmoe.offloading.sizes import alike, divide
from d2dmoe.surgery import swap


@dataclass(frozen=True)
class Offloaded:
    """The offloaded layers of a model. Printed, it is a table."""

    model: nn.Module
    layers: dict[str, OffloadedMoE]

    @property
    def traffic(self) -> Traffic:
        """Of all layers together."""
        own = [layer.traffic for layer in self.layers.values()]
        return Traffic(
            *(sum(getattr(x, name) for x in own) for name in Traffic.__dataclass_fields__)
        )

    def reset(self) -> None:
        """Count anew from now on; the caches stay as they are."""
        for layer in self.layers.values():
            layer.traffic = Traffic()

    @torch.inference_mode(False)
    def restore(self) -> nn.Module:
        """Bring all experts back to their devices; returns the model as it was before."""
        for name, layer in self.layers.items():
            swap(self.model, name, layer.restored())
        return self.model

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        held = sum(layer.size * layer.expert_bytes for layer in self.layers.values())
        whole = sum(layer.num_experts * layer.expert_bytes for layer in self.layers.values())
        yield f"{held / 2**20:,.1f} of {whole / 2**20:,.1f} MiB of experts are on the device"
        width = max(map(len, self.layers))
        for name, layer in self.layers.items():
            own = layer.traffic
            yield (
                f"  {name:<{width}}  {layer.size} of {layer.num_experts} experts; {own.uses:,} "
                f"uses, {own.hit_rate:.1%} hits, {own.fetched:,} fetched ahead"
            )


@torch.inference_mode(False)
def offload(
    model: nn.Module,
    resident: float,
    batches: Iterable[Any] | None = None,
    *,
    prefetch: bool = True,
    batch_size: int = 8,
) -> Offloaded:
    """Take the experts of a converted model to host memory, and leave some of them on the device.

    A layer holds the experts that were used last. While it runs, those that the next layer is
    expected to use, by its router on this layer's input, are copied ahead. Outputs are the resident
    model's, to the bit. One room of a whole layer's experts is taken beside what the layers hold.

    The model may be on the CPU: `model.to("cuda")` then moves all but the experts, which need not
    fit. Decoding gains where few experts run and tokens choose alike; see `operating_point`.

    Args:
        model: with routers, at its operating point.
        resident: share of all experts that the device holds, in [0, 1].
        batches: samples as it will be used with, of hundreds of tokens: see `as_batches`. The
            memory is divided among the layers so that these tokens, decoded one by one, miss
            least. None: all layers hold the same share.
        prefetch: whether experts are copied ahead.
        batch_size: rows of a `datasets.Dataset` in a batch.

    Returns:
        What the layers hold and missed; its `restore` brings the experts back.

    Raises:
        UserError: the model has no routed experts, or some that cannot be offloaded, `resident` is
            no share, or batches are not as they should be. The model then is as it was.
    """
    real = isinstance(resident, int | float) and not isinstance(resident, bool)
    if not real or not 0 <= resident <= 1:
        raise UserError(f"resident = {resident!r} must be a share of the experts, in [0, 1]")
    moes = routed_layers(model)
    for moe in moes.values():
        check_offloadable(moe)
    found = None
    if batches is not None:
        found = misses_of(record(model, batches, batch_size), prefetch)
    sizes, memory = cache_sizes(moes, resident, found), Memory()
    layers = {}
    for name, moe in moes.items():
        order = range(moe.num_experts) if found is None else found[name].order
        layers[name] = OffloadedMoE(moe, sizes[name], order, memory)
    for name, layer in layers.items():
        swap(model, name, layer)
    if prefetch:
        for name, following in successors(moes).items():
            layers[name].expects(layers[following])
    return Offloaded(model, layers)


def cache_sizes(
    moes: Mapping[str, MoE], resident: float, misses: Mapping[str, Misses] | None
) -> dict[str, int]:
    """How many experts each layer holds, so that layers with experts of the same shapes together
    hold a share of theirs.

    Args:
        moes: the layers by name.
        resident: the share, in [0, 1].
        misses: of each layer, by which the experts are divided; None: alike.
    """
    alike_shaped: dict[tuple, list[str]] = {}
    for name, moe in moes.items():
        weights = (moe.up, moe.gate, moe.down)
        kind = tuple(None if w is None else (w.shape[1:], w.dtype) for w in weights)
        alike_shaped.setdefault(kind, []).append(name)
    sizes: dict[str, int] = {}
    for names in alike_shaped.values():
        experts = [moes[name].num_experts for name in names]
        total = int(resident * sum(experts) + 1e-6)
        if misses is None:
            own = alike(experts, total)
        else:
            own = divide([misses[name].misses for name in names], total)
        sizes |= dict(zip(names, own, strict=True))
    return sizes
