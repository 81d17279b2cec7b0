"""The feed-forward block in the one form that every stage works on.

`W2 act(W1 z + b1) + b2`, or, for a gated one (GLU), `W_down (act(W_gate z) ⊙ W_up z)`. An attention
projection that was replaced by an MLP has this form too.
"""

from torch import Tensor, nn

from d2dmoe.activations import ACTIVATIONS, Activation, torch_function
from d2dmoe.lookup import look_up
from d2dmoe.surgery import find


class ActivationLayer(nn.Module):
    """An activation function as a module, so that hooks see what goes in and what comes out."""

    def __init__(self, name: str):
        """`name` is a key of `ACTIVATIONS`.

        Raises:
            UnknownName: there is no such activation.
        """
        super().__init__()
        self.name, self._function = name, torch_function(name)

    @property
    def record(self) -> Activation:
        """What is known of the function."""
        return look_up(ACTIVATIONS, self.name, "activation")

    def forward(self, x: Tensor) -> Tensor:  # of any shape
        return self._function(x)

    def extra_repr(self) -> str:
        return self.name


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
        """Use the activation called `name`, a key of `activations.ACTIVATIONS`.

        Raises:
            UnknownName: there is no such activation.
        """
        self.activation = ActivationLayer(name)

    @property
    def activation_name(self) -> str:
        """A key of `activations.ACTIVATIONS`."""
        return self.activation.name

    @property
    def d_model(self) -> int:
        """Width of the tokens that it takes."""
        return self.up.in_features

    @property
    def d_out(self) -> int:
        """Width of what it gives."""
        return self.down.out_features

    @property
    def d_ff(self) -> int:
        """Hidden neurons."""
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
        if self.up.weight.dtype != self.down.weight.dtype:  # as of T5 in fp16, W2 in fp32
            hidden = hidden.to(self.down.weight.dtype)
        return self.dropout(self.down(self.hidden_dropout(hidden)))


def set_activation(model: nn.Module, name: str) -> None:
    """Give every FFN of the model the activation `name`, a key of `activations.ACTIVATIONS`.

    Raises:
        UnknownName: there is no such activation.
    """
    for ffn in find(model, FFN).values():
        ffn.set_activation(name)
