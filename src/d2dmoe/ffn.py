"""The feed-forward block in the one form that every stage works on: W2 act(W1 z + b1) + b2."""

from torch import Tensor, nn

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class FFN(nn.Module):
    """`down(act(up(z)))`, with dropout after both maps.

    The activation is a module of its own, so that hooks see pre-activations (its input) and
    hidden activations (its output).
    """

    def __init__(self, up: nn.Linear, down: nn.Linear, activation: str, dropout: float = 0.0):
        super().__init__()
        self.up, self.down = up, down
        self.dropout = nn.Dropout(dropout)
        self.set_activation(activation)

    def set_activation(self, name: str) -> None:
        """Use the activation called `name` ("gelu" or "relu")."""
        self.activation_name = name
        self.activation = ACTIVATIONS[name]()

    @property
    def d_model(self) -> int:
        return self.up.in_features

    @property
    def d_ff(self) -> int:
        return self.up.out_features

    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., d_model]
        hidden = self.activation(self.up(z))  # [..., d_ff]
        return self.dropout(self.down(self.dropout(hidden)))
