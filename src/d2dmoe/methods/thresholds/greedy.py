"""TEAL's search (arXiv 2408.14690, algorithm 1): how sparse the inputs of each linear map may be.

In each block by itself, from all inputs on: of its maps, the one whose inputs are made sparser is
that which moves the block's output least, until nothing is left. A step saves the same share of the
block's cost whichever map takes it, so that sizes do not matter: a share of the mean map's cost, so
that 1 / step steps of a map of mean size leave none of its inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2dmoe.ffn import FFN
from d2dmoe.inputs import Inputs
from d2dmoe.jobs.progress import Progress
from d2dmoe.methods.thresholds.layers import Threshold, ThresholdedLinear
from d2dmoe.padding import real_tokens
from d2dmoe.surgery import find, watch

DONE = 1 - 1e-6  # sparsity of a map without inputs, but for rounding


@dataclass
class Block:
    """The search in one block."""

    maps: list[ThresholdedLinear]
    sparsity: Tensor  # of each map's inputs, float64 [maps]
    path: list[tuple[float, Tensor]] = field(default_factory=list)
    """Mean sparsity by cost after each step, and each map's."""

    @classmethod
    def of(cls, maps: list[ThresholdedLinear]) -> "Block":
        """Before its first step."""
        block = cls(maps, torch.zeros(len(maps), dtype=torch.float64))
        block.path.append((0.0, block.sparsity))
        return block

    @property
    def shares(self) -> Tensor:
        """Of the block's cost, each map's: [maps]."""
        sizes = torch.tensor([m.weight.numel() for m in self.maps], dtype=torch.float64)
        return sizes / sizes.sum()

    @property
    def open(self) -> list[int]:
        """The maps that can be made sparser."""
        return [i for i, sparsity in enumerate(self.sparsity) if sparsity < DONE]

    def stepped(self, index: int, step: float) -> Tensor:
        """The sparsities after a step of a map."""
        changed = self.sparsity.clone()
        saved = step / len(self.maps)  # of the block's cost
        changed[index] = min(1.0, float(changed[index] + saved / self.shares[index]))
        return changed

    def use(self, sparsity: Tensor) -> None:
        """Let the maps run so sparse."""
        for layer, value in zip(self.maps, sparsity, strict=True):
            layer.threshold.density = 1 - float(value)

    def take(self, index: int, step: float) -> None:
        """Go on by a step of a map."""
        self.sparsity = self.stepped(index, step)
        self.path.append((float(self.shares @ self.sparsity), self.sparsity))

    def densities(self, targets: Tensor) -> Iterator[tuple[Threshold, Tensor]]:
        """Of each map, its densities [targets] at the block's mean sparsities `targets`."""
        means, sparsities = zip(*self.path, strict=True)
        for layer, own in zip(self.maps, torch.stack(sparsities, 1), strict=True):
            found = np.interp(targets.double(), means, own)
            yield layer.threshold, torch.from_numpy(1 - found)


def find_paths(
    model: nn.Module, inputs: Sequence[Inputs], step: float, targets: Tensor
) -> list[tuple[Threshold, Tensor]]:
    """The densities of all maps at target sparsities of their blocks.

    All blocks are searched at once: each gets what it would get in the dense model.

    Args:
        model: with thresholds for the inputs of its linear maps, filled with quantiles.
        inputs: of calibrating batches.
        step: share of the cost of a block's mean map that a step saves.
        targets: sparsities in [0, 1], rising, [targets].

    Returns:
        Each map's threshold, and its densities [targets]; all thresholds are at density 1.
    """
    blocks = {name: Block.of(maps) for name, maps in maps_of_blocks(model).items()}
    errors = _BlockErrors(model, [*blocks], inputs)
    progress = Progress("searching densities, %", 100)
    while any(block.open for block in blocks.values()):
        for name, index in _best_steps(blocks, errors, step).items():
            blocks[name].take(index, step)
        progress.update(round(100 * min(block.path[-1][0] for block in blocks.values())))
    for block in blocks.values():
        block.use(torch.zeros_like(block.sparsity))
    return [pair for block in blocks.values() for pair in block.densities(targets)]


def _best_steps(blocks: dict[str, Block], errors: "_BlockErrors", step: float) -> dict[str, int]:
    """Which map of each block takes the next step; none of a block that is through."""
    found: dict[str, dict[int, float]] = {name: {} for name, b in blocks.items() if b.open}
    for place in range(max(len(blocks[name].open) for name in found)):
        tried = {name: blocks[name].open[place] for name in found if place < len(blocks[name].open)}
        for name, index in tried.items():
            blocks[name].use(blocks[name].stepped(index, step))
        measured = errors.measure()
        for name, index in tried.items():
            found[name][index] = measured[name]
    return {name: min(of, key=of.__getitem__) for name, of in found.items()}


def maps_of_blocks(model: nn.Module) -> dict[str, list[ThresholdedLinear]]:
    """The linear maps of each Transformer block, by the block's name: the least module that holds
    an FFN and an attention's maps."""
    linears = find(model, ThresholdedLinear)
    attentions = [name for name, layer in linears.items() if layer.role not in FFN_ROLES]
    found = {}
    for name in find(model, FFN):
        parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        block = next(p for p in parents if any(a.startswith(f"{p}.") for a in attentions))
        found[block] = [layer for x, layer in linears.items() if x.startswith(f"{block}.")]
    return found


FFN_ROLES = ("up", "gate", "down")


class _BlockErrors:
    """How far the outputs of blocks are from the dense model's, each on its inputs there."""

    def __init__(self, model: nn.Module, names: list[str], inputs: Sequence[Inputs]):
        self.model, self.inputs = model, inputs
        self.blocks = {name: model.get_submodule(name) for name in names}
        self.recorded = [self._run(batch) for batch in inputs]

    def measure(self) -> dict[str, float]:
        """Squared error of each block's output, a sum over real tokens."""
        totals = dict.fromkeys(self.blocks, 0.0)
        for batch, dense in zip(self.inputs, self.recorded, strict=True):
            real = real_tokens(batch)
            with self._fed(dense):
                seen = self._run(batch)
            for name, (_z, out) in seen.items():
                error = (out - dense[name][1]).square().sum(-1)
                totals[name] += float((error if real is None else error[real]).sum())
        return totals

    @torch.inference_mode()
    def _run(self, batch: Inputs) -> dict[str, tuple[Tensor, Tensor]]:
        """Input and output of each block, [batch, tokens, d_model]."""
        with watch(self.blocks, lambda _block, z, out: (z, _states(out))) as seen:
            self.model(**batch)
        return dict(seen)

    @contextmanager
    def _fed(self, dense: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Every block gets the dense model's states, whatever the block before gives."""
        with ExitStack() as hooks:
            for name, block in self.blocks.items():

                def feed(_block: Any, args: tuple, states: Tensor = dense[name][0]) -> tuple:
                    return states, *args[1:]

                hooks.callback(block.register_forward_pre_hook(feed).remove)
            yield


def _states(output: Any) -> Tensor:
    """Of a block's output, which transformers may wrap."""
    return output[0] if isinstance(output, tuple) else output
