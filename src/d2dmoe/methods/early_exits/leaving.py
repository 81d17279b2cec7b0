"""Samples that leave a model at an exit after one of its blocks, as soon as it is confident.

The model's own classifier is the last exit, which every sample takes that passed the others.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.errors import ConfigError
from d2dmoe.inputs import logits_of
from d2dmoe.models.build import blocks_of
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import watch


class Exits(nn.Module):
    """What classifies at the exits of a model, which has it as `exits`; its forward does not use
    it."""

    every: int  # blocks from one exit to the next

    def answers(self, states: Iterable[Tensor]) -> Tensor:
        """Logits that samples leave with, [m, batch, classes].

        Args:
            states: the class token after the blocks of the first m exits, each [batch, d_model].
        """
        raise NotImplementedError


def exit_blocks(model: nn.Module, spec: ModelSpec, every: int) -> dict[str, nn.Module]:
    """The blocks that an exit follows, by name: every so many, without the last, after which the
    model's own classifier costs next to nothing.

    Raises:
        CheckpointError: the architecture has no class token.
        ConfigError: there is no such block.
    """
    blocks = blocks_of(spec.architecture, model)
    chosen = dict(list(blocks.items())[every - 1 : -1 : every])
    if not chosen:
        raise ConfigError(
            f"every = {every} leaves no exit before the last of {len(blocks)} blocks; "
            f"allowed: 1 to {len(blocks) - 1}"
        )
    return chosen


def watch_states(blocks: Mapping[str, nn.Module]) -> AbstractContextManager[dict[str, Tensor]]:
    """Record the class token after each block, [batch, d_model], by the block's name."""
    return watch(blocks, lambda _block, _z, output: output[:, 0])


def leave_at(confidence: Tensor, threshold: float) -> Tensor:
    """The first exit that is confident enough: [exits, samples] -> integers [samples].

    `exits`, the number of them, stands for the model's own classifier.
    """
    confident = confidence >= threshold
    end = torch.ones_like(confident[:1])
    return torch.cat([confident, end]).int().argmax(0)  # of equal ones the first


class UpTo(nn.Module):
    """A model as a sample runs it that leaves at an exit: nothing after the exit's block."""

    def __init__(self, model: nn.Module, blocks: Mapping[str, nn.Module], index: int):
        """The exit after `blocks[index]`; an index of `len(blocks)`: the end of the model."""
        super().__init__()
        self.model, self.training = model, model.training
        self.passed = dict(list(blocks.items())[: index + 1])  # their heads run
        self.early = index < len(blocks)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits [batch, classes] of the exit, or at the end of the model."""
        exits: Any = self.model.get_submodule("exits")
        with watch_states(self.passed) as states:
            logits = self._run(inputs)
        answers = exits.answers(states.values())
        return answers[-1] if logits is None else logits

    def _run(self, inputs: dict[str, Tensor]) -> Tensor | None:
        if not self.early:
            return logits_of(self.model, inputs)
        *_, last = self.passed.values()
        handle = last.register_forward_hook(_leave)  # runs after that of `watch_states`
        try:
            with suppress(_Left):
                self.model(**inputs)
        finally:
            handle.remove()
        return None


class _Left(Exception):
    """A sample left; no fault."""


def _leave(*_) -> None:
    raise _Left
