"""Laws of routers, and of what D2DMoE's and MoEfication's are trained on."""

import math

import pytest
import torch
from small import make_ffn, others_later

from d2dmoe.errors import UnknownName
from d2dmoe.lookup import resolve
from d2dmoe.methods.moefication import classification_loss, classification_targets
from d2dmoe.moe import MoE, split_ffn
from d2dmoe.router import Router, norm_regression_loss
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.weights import scores


def make_router(kind: str, d_model: int = 7, num_experts: int = 5) -> Router:
    torch.manual_seed(0)
    return Router(d_model, 6, num_experts, kind)


def make_moe() -> MoE:
    """Five experts of four neurons, all trainable."""
    return split_ffn(make_ffn(7, 20, "relu"), torch.arange(20).view(5, 4))


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


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_the_functional_scores_are_the_modules(kind):
    router, z = make_router(kind), tokens(2, 4, 7)
    assert torch.equal(scores(z, router.weights), router(z)) and (router(z) >= 0).all()


def test_an_unknown_kind_is_refused_and_the_allowed_ones_listed():
    refusal = f"router kind 'x'; allowed: {', '.join(ROUTER_KINDS)}"
    with pytest.raises(UnknownName, match=refusal):
        make_router("x")
    with pytest.raises(UnknownName, match=refusal):
        scores(tokens(4, 7), make_router("regression").weights._replace(kind="x"))


def test_regression_loss_is_the_mean_square_over_tokens_and_experts():
    router, moe, z = make_router("regression"), make_moe(), tokens(4, 7)
    pairs = zip(router(z).flatten().tolist(), moe.output_norms(z).flatten().tolist(), strict=True)
    expected = sum((score - norm) ** 2 for score, norm in pairs) / 20
    assert norm_regression_loss(router, moe, z).item() == pytest.approx(expected, rel=1e-5)


def test_classification_targets_by_hand():
    hidden = torch.tensor([[[1.0, 1.0], [0.0, 4.0], [0.0, 0.0]], [[-3.0, 0.0], [1.0, 1.0], [0, 8]]])
    assert classification_targets(hidden).tolist() == [[0.5, 1.0, 0.0], [0.375, 0.25, 1.0]]


def test_classification_targets_of_a_silent_token_are_0():
    assert classification_targets(torch.zeros(3, 5, 4)).tolist() == [[0.0] * 5] * 3


def test_classification_loss_by_hand():
    router, moe, z = make_router("classification"), make_moe(), tokens(1, 7)
    targets = classification_targets(moe.hidden(z))[0].tolist()
    pairs = list(zip(router(z)[0].tolist(), targets, strict=True))
    expected = -sum(t * math.log(p) + (1 - t) * math.log(1 - p) for p, t in pairs) / 5
    assert classification_loss(router, moe, z).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_the_losses_train_the_router_alone(kind):
    router, moe = make_router(kind), make_moe()
    resolve(ROUTER_KINDS[kind].loss)(router, moe, tokens(4, 7)).backward()
    assert all(p.grad is not None and p.grad.any() for p in router.parameters())
    assert all(p.grad is None for p in moe.parameters())


@pytest.mark.parametrize("kind", others_later(ROUTER_KINDS, ["regression"]))
def test_training_makes_a_router_better_than_any_constant_prediction(kind):
    moe, router, z = make_moe(), make_router(kind), tokens(64, 7)
    loss = resolve(ROUTER_KINDS[kind].loss)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss(router, moe, z).backward()
        optimizer.step()
    with torch.no_grad():
        wanted = {
            "regression": moe.output_norms(z),
            "root_regression": moe.output_norms(z),
            "classification": classification_targets(moe.hidden(z)),
        }
        error = (router(z) - wanted[kind]).square().mean()
    assert error < 0.5 * wanted[kind].var(0, correction=0).mean()
