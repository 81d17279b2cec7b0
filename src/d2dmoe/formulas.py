"""FLOPs by sizes alone, per token; a multiply–add counts as 2, by the convention of `flops`.

Figures draw these formulas, so nothing here needs torch.
"""

from dataclasses import dataclass


def ffn_flops(d_model: int, d_ff: int, gated: bool = False, d_out: int | None = None) -> int:
    """An FFN, or an expert of d_ff neurons: two maps, or three if gated."""
    return 2 * d_ff * ((2 if gated else 1) * d_model + (d_model if d_out is None else d_out))


def router_flops(d_model: int, width: int, num_experts: int) -> int:
    """A router Linear(d_model, h), Linear(h, n)."""
    return 2 * width * (d_model + num_experts)


def layer_ratio(d_model: int, d_ff: int, num_experts: int, width: int, k: float) -> float:
    """Cost of a dynamic-k layer that runs k of n experts on average, relative to the FFN it
    replaces (figure 10)."""
    experts = k * ffn_flops(d_model, d_ff // num_experts)
    return (router_flops(d_model, width, num_experts) + experts) / ffn_flops(d_model, d_ff)


@dataclass(frozen=True)
class Transformer:
    """The sizes that a Transformer's cost follows from."""

    tokens: int  # of a sample
    layers: int
    d_model: int
    d_ff: int
    gated: bool = False
    d_kv: int | None = None  # width of the keys, and of the values; None: d_model
    classes: int = 0  # of an output layer that every token has, as words
    outside: int = 0  # FLOPs of a sample beside all that, as of the patches' embedding

    @property
    def ffns(self) -> int:
        """FLOPs of a sample's FFNs."""
        return self.tokens * self.layers * ffn_flops(self.d_model, self.d_ff, self.gated)

    @property
    def flops(self) -> int:
        """FLOPs of a sample; causal attention counts all pairs of tokens."""
        d_kv = self.d_model if self.d_kv is None else self.d_kv
        projections = 2 * self.d_model * (2 * self.d_model + 2 * d_kv)
        pairs = 2 * 2 * self.tokens * self.d_model  # scores, and their products with the values
        attention = self.layers * (projections + pairs)
        words = 2 * self.d_model * self.classes
        return self.ffns + self.tokens * (attention + words) + self.outside

    @property
    def ffn_share(self) -> float:
        """Share of the cost that the FFNs have."""
        return self.ffns / self.flops
