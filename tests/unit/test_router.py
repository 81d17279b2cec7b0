"""Laws of routers, and of what D2DMoE's and MoEfication's are trained on."""

import math

import pytest
import torch
from small import make_ffn

from d2dmoe.methods.moefication import classification_loss, classification_targets
from d2dmoe.moe import split_ffn
from d2dmoe.router import Router, norm_regression_loss


def make_router(kind: str, d_model: int = 7, num_experts: int = 5) -> Router:
    torch.manual_seed(0)
    return Router(d_model, 6, num_experts, kind)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_regression_router_is_the_absolute_value_of_two_linear_maps_with_relu_between():
    router, z = make_router("regression"), tokens(2, 4, 7)
    first, _, second = router.layers
    expected = (second.weight @ (first.weight @ z.mT + first.bias[:, None]).relu()).mT
    expected = expected + second.bias
    assert (expected < 0).any()
    assert torch.allclose(router(z), expected.abs(), atol=1e-6)


def test_a_classification_router_gives_probabilities_of_its_logits():
    router, z = make_router("classification"), tokens(2, 4, 7)
    assert torch.allclose(router(z), 1 / (1 + (-router.logits(z)).exp()))


def test_regression_loss_is_the_mean_square_over_tokens_and_experts():
    router, z = make_router("regression"), tokens(4, 7)
    norms = tokens(4, 5).abs()
    pairs = zip(router(z).flatten().tolist(), norms.flatten().tolist(), strict=True)
    expected = sum((score - norm) ** 2 for score, norm in pairs) / 20
    assert norm_regression_loss(router, z, norms).item() == pytest.approx(expected, rel=1e-5)
    assert norm_regression_loss(router, z, router(z)) == 0


def test_classification_targets_by_hand():
    hidden = torch.tensor([[[1.0, 1.0], [0.0, 4.0], [0.0, 0.0]], [[-3.0, 0.0], [1.0, 1.0], [0, 8]]])
    assert classification_targets(hidden).tolist() == [[0.5, 1.0, 0.0], [0.375, 0.25, 1.0]]


def test_classification_targets_of_a_silent_token_are_0():
    assert classification_targets(torch.zeros(3, 5, 4)).tolist() == [[0.0] * 5] * 3


def test_classification_loss_by_hand():
    router, z = make_router("classification", num_experts=2), tokens(1, 7)
    hidden = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]])  # targets 1 and 0.5
    p = torch.sigmoid(router.logits(z))[0].tolist()
    expected = -(math.log(p[0]) + 0.5 * math.log(p[1]) + 0.5 * math.log(1 - p[1])) / 2
    assert classification_loss(router, z, hidden).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_training_makes_a_router_better_than_any_constant_prediction(kind):
    ffn, z = make_ffn(7, 20, "relu"), tokens(64, 7)
    moe, router = split_ffn(ffn, torch.arange(20).view(5, 4)), make_router(kind)
    norms, hidden = moe.output_norms(z).detach(), moe.hidden(z).detach()
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    for _ in range(150):
        if kind == "regression":
            loss = norm_regression_loss(router, z, norms)
        else:
            loss = classification_loss(router, z, hidden)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    targets = norms if kind == "regression" else classification_targets(hidden)
    error = (router(z) - targets).square().mean()
    assert error < 0.5 * targets.var(0, correction=0).mean()
