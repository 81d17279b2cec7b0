"""A-ViT (Yin et al. 2022, arXiv 2112.07658): each token of a ViT halts at a depth of its own.

After every block one channel of a token's state gives its halting score, h = σ(γ x₀ + β), without
any extra parameter. A token halts after the block in which its scores add up to 1 − ε, and at the
latest after the last block. Its halting probability p is h in the blocks before, and the remainder
r = 1 − Σ h in the block where it halts. The classifier reads the mean of the class token's states,
weighted by its p. Patches act on the output through attention alone, so when the class token halts,
no later work on patches can change the output: the sample ends there and costs nothing more.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.pooling import pooled
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find

CHANNEL = 0  # of a token's state, which gives its halting score
EPSILON = 0.01
SMALLEST_SHARE = 1e-12  # of the halting scores in a layer; the logarithm of 0 is none


@dataclass(frozen=True)
class Trace:
    """How a batch halted: tensors [layers, batch, tokens], of which token 0 is the class token."""

    alive: Tensor  # boolean: the tokens that run the block
    scores: Tensor  # h of tokens alive, else 0; in the last block all that is missing to 1
    probabilities: Tensor  # p; over the layers they sum to 1

    @property
    def depths(self) -> Tensor:
        """N, the blocks that each token runs: integers [batch, tokens]."""
        return self.alive.sum(0)

    @property
    def remainders(self) -> Tensor:
        """r, each token's probability in the block where it halts: [batch, tokens]."""
        return self.probabilities.gather(0, self.depths.unsqueeze(0) - 1).squeeze(0)

    @property
    def running(self) -> Tensor:
        """Tokens that each block has to compute for each sample: integers [layers, batch].

        None once the class token has halted.
        """
        return (self.alive & self.alive[:, :, :1]).sum(-1)


class Halting:
    """Who is alive, block after block."""

    def __init__(self, batch: int, tokens: int, device: torch.device):
        self.alive = torch.ones(batch, tokens, dtype=torch.bool, device=device)
        self.total = torch.zeros(batch, tokens, device=device)  # of the scores so far
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def step(self, scores: Tensor) -> None:
        """Add the scores of a block's output, [batch, tokens]; those of halted tokens are void."""
        scores = scores * self.alive
        halts = self.alive & (self.total + scores >= 1 - EPSILON)
        self.steps.append((self.alive, scores, torch.where(halts, 1 - self.total, scores)))
        self.total = self.total + scores
        self.alive = self.alive & ~halts

    def finish(self) -> Trace:
        """Add the last block's scores, which halt whoever is still alive."""
        self.step(1 - self.total)
        return Trace(*(torch.stack(parts) for parts in zip(*self.steps, strict=True)))


class MeanField(nn.Module):
    """The class token's output; a module, so that hooks see the trace."""

    def forward(self, trace: Trace, states: Tensor) -> Tensor:
        """Mean of its states [layers, batch, d_model] by its probabilities: [batch, d_model]."""
        return (trace.probabilities[:, :, :1] * states).sum(0)


class HaltingEncoder(nn.Module):
    """torchvision's ViT encoder with halting tokens; its weights keep their names."""

    opens_blocks = True  # it calls their parts

    def __init__(self, encoder: Any, gamma: float, beta: float):
        super().__init__()
        self.pos_embedding, self.dropout = encoder.pos_embedding, encoder.dropout
        self.layers, self.ln = encoder.layers, encoder.ln
        self.gamma, self.beta = gamma, beta
        self.mean_field = MeanField()

    def forward(self, x: Tensor) -> Tensor:
        """The class token's output alone: [batch, tokens, d_model] -> [batch, 1, d_model].

        Blocks compute all tokens and mask those that have halted: exact, not faster.
        """
        x = self.dropout(x + self.pos_embedding)
        halting = Halting(x.shape[0], x.shape[1], x.device)
        states = []
        for index, block in enumerate(self.layers):
            if index:
                halting.step(self.scores(x))
            x = run_block(block, x, halting.alive)
            states.append(x[:, 0])
        return self.ln(self.mean_field(halting.finish(), torch.stack(states))).unsqueeze(1)

    def scores(self, x: Tensor) -> Tensor:
        """h of states: [..., d_model] -> [...]."""
        return torch.sigmoid(self.gamma * x[..., CHANNEL].float() + self.beta)


def run_block(block: Any, x: Tensor, alive: Tensor) -> Tensor:
    """torchvision's encoder block on the tokens that are alive.

    A masked key weighs exactly 0 in a softmax, so the others fare as if it had been removed.

    Args:
        block: an `EncoderBlock` whose attention takes a `key_padding_mask`.
        x: states, [batch, tokens, d_model].
        alive: boolean [batch, tokens].

    Returns:
        The new states, 0 for halted tokens.
    """
    ended = ~alive.any(1, keepdim=True)  # a softmax over no keys would be NaN: these keep them all
    z, masked = block.ln_1(x), ~(alive | ended)
    attended, _ = block.self_attention(z, z, z, key_padding_mask=masked, need_weights=False)
    x = x + block.dropout(attended)
    return (x + block.mlp(block.ln_2(x))) * alive.unsqueeze(-1)


def add_halting(model: Any, gamma: float, beta: float) -> nn.Module:
    """Let the tokens of a torchvision `VisionTransformer` halt, in place; returns the model."""
    model.encoder = HaltingEncoder(model.encoder, gamma, beta)
    return model


def rebuild(
    model: nn.Module, spec: ModelSpec, depth: float, gamma: float, beta: float
) -> nn.Module:
    """The ViT with halting tokens; the depth that it was trained for is in its weights."""
    return add_halting(model, gamma, beta)


def quiet_channel(model: Any) -> None:
    """Set to 0, in place, all weights of a ViT that write to the halting channel.

    Its values in a trained model say nothing of halting, yet would halt tokens at random. At 0
    every score is σ(β), about 5e-5, so that training starts from the dense model without one of
    its channels; and these weights, unlike those of a channel that is cut off, can grow again.
    """
    embedding = list(find(model.conv_proj, nn.Conv2d).values())[-1]
    blocks = model.encoder.layers
    writers = [layer for b in blocks for layer in (b.self_attention.out_proj, b.mlp.down)]
    with torch.no_grad():
        for added in (model.class_token, model.encoder.pos_embedding):
            added[..., CHANNEL] = 0
        for layer in (embedding, *writers):
            layer.weight[CHANNEL] = 0
            layer.bias[CHANNEL] = 0


def ponder_loss(trace: Trace) -> Tensor:
    """Mean over tokens of N + r, in blocks; its gradient is that of r alone."""
    return pooled((trace.depths + trace.remainders).mean(), trace.depths.numel())


def depth_prior(layers: int, depth: float, std: float) -> Tensor:
    """A Gaussian around `depth` at the layers 1, 2, …, scaled to sum 1: [layers]."""
    distances = (torch.arange(1, layers + 1) - depth) / std
    return torch.softmax(-(distances**2) / 2, 0)


def prior_loss(trace: Trace, prior: Tensor) -> Tensor:
    """KL(prior ‖ shares), in nats; a layer's share is that of its mean score in the sum of all.

    The paper writes KL(shares ‖ prior), its authors' code computes this direction, whose gradient
    does not fade where scores are small. The last layer's scores are what is missing to 1: with h
    itself the shares could fit the prior however small all scores are, and no token would halt.

    Args:
        trace: of a batch.
        prior: probabilities, [layers].
    """
    means = pooled(trace.scores.mean((1, 2)), trace.scores[0].numel())  # [layers]
    shares = (means / means.sum()).clamp(min=SMALLEST_SHARE)
    return (torch.xlogy(prior, prior) - prior * shares.log()).sum()
