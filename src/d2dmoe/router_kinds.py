"""The kinds of routers: one record each says what its scores are and what it is trained on."""

from dataclasses import dataclass

from d2dmoe.lookup import table_of


@dataclass(frozen=True)
class RouterKind:
    """What becomes of a router's last map, its logits [..., num_experts]."""

    name: str
    scores: str  # a function of the logits, element by element and never negative
    triton: str  # the same, a Triton function of an fp32 block
    loss: str  # (router, its MoE layer, z [tokens, d_model]) -> scalar


ROUTER_KINDS = table_of(
    [
        RouterKind(
            "regression",  # the paper's: the norm of each expert's output
            scores="torch:abs",
            triton="d2dmoe.kernels.activations:absolute",
            loss="d2dmoe.router:norm_regression_loss",
        ),
        RouterKind(
            "root_regression",  # ours: its square root, so that small norms count as well
            scores="torch:square",
            triton="d2dmoe.kernels.activations:square",
            loss="d2dmoe.router:root_regression_loss",
        ),
        RouterKind(
            "classification",  # MoEfication's: whether an expert is among the most active
            scores="torch:sigmoid",
            triton="d2dmoe.kernels.activations:sigmoid",
            loss="d2dmoe.methods.moefication:classification_loss",
        ),
    ]
)
