"""The feed-forward block in the one form that every stage works on.

`W2 act(W1 z + b1) + b2`, or, for a gated one (GLU), `W_down (act(W_gate z) ⊙ W_up z)`. An attention
projection that was replaced by an MLP has this form too.
"""

from functools import partial

from torch import Tensor, nn

ACTIVATIONS = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),  # GPT-2's and Gemma's
    "relu": nn.ReLU,
}


class FFN(nn.Module):
    """`down(act(up(z)))`, or with a gate `down(act(gate(z)) * up(z))`; the maps may lack biases.

    The activation is a module of its own, so that hooks see pre-activations (its input) and
    activations (its output): those that sparsity enforcement acts on.
    """

    def __init__(
        self,
        up: nn.Linear,
        down: nn.Linear,
        activation: str,
        gate: nn.Linear | None = None,
        dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        role: str = "ffn",
    ):
        """`role` is what the block does: `ffn`, or the projection q, k, v or o of an attention."""
        super().__init__()
        self.role = role
        self.up, self.down, self.gate = up, down, gate
        self.dropout, self.hidden_dropout = nn.Dropout(dropout), nn.Dropout(hidden_dropout)
        self.set_activation(activation)

    def set_activation(self, name: str) -> None:
        """Use the activation called `name`, a key of `ACTIVATIONS`."""
        self.activation_name = name
        self.activation = ACTIVATIONS[name]()

    @property
    def d_model(self) -> int:
        return self.up.in_features

    @property
    def d_out(self) -> int:
        return self.down.out_features

    @property
    def d_ff(self) -> int:
        return self.up.out_features

    @property
    def activated(self) -> nn.Linear:
        """The map whose output is activated: W1, or the gate. Its rows decide which neurons fire
        together, so the split into experts clusters them."""
        return self.up if self.gate is None else self.gate

    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., d_out]
        hidden = self.activation(self.activated(z))  # [..., d_ff]
        if self.gate is not None:
            hidden = hidden * self.up(z)
        return self.dropout(self.down(self.hidden_dropout(hidden)))
