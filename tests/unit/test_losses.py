"""Laws of the losses for other people's loops: the last forward's, and no traces left."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from small_language import make_language, make_routed_language, make_tokens, split_language
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2dmoe.api.losses import RouterLoss, SparsityPenalty
from d2dmoe.errors import UnknownName, UserError
from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE, watch_inputs
from d2dmoe.router import router_losses
from d2dmoe.sparsity import PENALTIES, penalty, watch_activations
from d2dmoe.surgery import find

TOKENS = make_tokens(3, 6)
MASK = torch.tensor([[1] * 6, [1] * 3 + [0] * 3, [1] * 5 + [0]])
INPUTS = {"input_ids": TOKENS, "attention_mask": MASK}


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def stepped(model: nn.Module, loss: SparsityPenalty) -> torch.Tensor:
    model.zero_grad()
    (model(**INPUTS).logits.square().mean() + loss()).backward()
    return gradients(model)


@pytest.mark.parametrize("mode", PENALTIES)
def test_the_penalty_is_the_pipelines_with_padding_left_out(mode):
    model = make_language("bert")
    with SparsityPenalty(model, mode) as loss, watch_activations(model) as layers:
        model(**INPUTS)
        expected = penalty(mode, layers.values(), MASK.bool())
        assert torch.allclose(loss(), expected, rtol=1e-5)


def test_the_penalty_counts_the_last_forward_alone():
    model = make_language("gpt2")
    with SparsityPenalty(model) as loss:
        model(TOKENS)
        first = loss()
        assert loss() == first
        model(TOKENS[:1])
        assert loss() != first
        model(TOKENS)
        assert loss() == first


@pytest.mark.parametrize("name", ["bert", "gemma"])
def test_gradient_checkpointing_changes_no_gradient(name):
    model = make_language(name).train()
    with SparsityPenalty(model) as loss:
        expected = stepped(model, loss)
        model.gradient_checkpointing_enable()
        assert torch.allclose(stepped(model, loss), expected, atol=1e-7)


def test_reentrant_checkpointing_is_refused_for_it_has_no_gradient():
    model = make_language("gemma").train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with SparsityPenalty(model) as loss, pytest.raises(UserError, match="use_reentrant=False"):
        stepped(model, loss)


def test_gradients_of_parts_of_a_batch_add_up():
    model = make_language("gpt2")
    with SparsityPenalty(model) as loss:
        model(TOKENS)
        loss().backward()
        expected = gradients(model)
        model.zero_grad()
        for row in TOKENS:
            model(row[None])
            (loss() / len(TOKENS)).backward()
        assert torch.allclose(gradients(model), expected, atol=1e-5)


def test_under_autocast_and_in_half_precision_the_penalty_is_float32_and_finite():
    model = make_language("gemma")
    with SparsityPenalty(model, "relu_l1") as loss:
        model(**INPUTS)
        expected = loss()
        with torch.autocast("cpu", torch.bfloat16):
            model(**INPUTS)
            assert loss().dtype == torch.float32 and torch.allclose(loss(), expected, rtol=0.05)
        model.bfloat16()(**INPUTS)
        assert loss().dtype == torch.float32 and torch.allclose(loss(), expected, rtol=0.05)


def test_a_forward_without_gradients_has_a_penalty_but_none_to_train_on():
    model = make_language("gpt2")
    with SparsityPenalty(model) as loss:
        with torch.no_grad():
            model.eval()(TOKENS)
            assert loss().isfinite()
        with pytest.raises(UserError, match="before any evaluation"):
            loss()
        model.requires_grad_(False)
        assert not loss().requires_grad


@pytest.fixture
def distributed():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_wrapper_of_the_model_changes_nothing(distributed):
    model = make_language("bert")
    with SparsityPenalty(model) as loss:
        expected = stepped(model, loss)
        wrapped = DistributedDataParallel(model)
        assert torch.allclose(stepped(wrapped, loss), expected, atol=1e-7)
    with SparsityPenalty(wrapped) as loss:
        assert torch.allclose(stepped(wrapped, loss), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (lambda: make_language("bert"), SparsityPenalty),
        (lambda: make_routed_language("bert"), RouterLoss),
    ],
)
def test_hooks_go_and_copies_of_the_model_are_not_watched(make, loss):
    model = make()
    with loss(model) as watching:
        model(**INPUTS)
        value = watching()
        copy.deepcopy(model)(TOKENS[:1])
        pickle.loads(pickle.dumps(model))(TOKENS[:1])
        assert watching() == value
    assert not hooks(model)
    watching.attach().attach()
    count = hooks(model)
    watching.close()
    assert count and not hooks(model)
    watching.close()


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (lambda: make_language("bert"), SparsityPenalty),
        (lambda: make_routed_language("bert"), RouterLoss),
    ],
)
def test_a_forgotten_forward_and_a_forgotten_attach_are_said(make, loss):
    model = make()
    watching = loss(model)
    with pytest.raises(UserError, match="attach"):
        watching()
    with watching, pytest.raises(UserError, match="forward"):
        watching()
    with watching:
        model.forward(**INPUTS)  # past the hooks
        with pytest.raises(UserError, match="not model.forward"):
            watching()


def test_ffns_are_found_and_get_relu_but_for_modes_that_keep_theirs():
    model = make_language("gpt2")
    kept = {ffn.activation_name for ffn in find(model, FFN).values()}
    SparsityPenalty(model, "gelu_clamped")
    assert {ffn.activation_name for ffn in find(model, FFN).values()} == kept != {"relu"}
    SparsityPenalty(model)
    assert {ffn.activation_name for ffn in find(model, FFN).values()} == {"relu"}
    torch_s = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    with SparsityPenalty(torch_s) as loss:
        torch_s(torch.randn(2, 3, 8))
        assert 1 <= loss() <= 16


def test_models_without_what_is_watched_are_refused():
    with pytest.raises(UserError, match="experts already"):
        SparsityPenalty(make_routed_language("bert"))
    with pytest.raises(UnknownName, match="relu_hoyer"):
        SparsityPenalty(make_language("bert"), "relu_hoyr")
    with pytest.raises(UserError, match="convert"):
        RouterLoss(make_language("bert"))
    with pytest.raises(UserError, match="add_routers"):
        RouterLoss(split_language(make_language("bert")))


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_the_routers_loss_is_the_pipelines_and_reaches_routers_alone(kind):
    model = make_routed_language("bert", tau=0.0, kind=kind)
    with RouterLoss(model) as loss, watch_inputs(model) as inputs:
        with torch.inference_mode():
            model(**INPUTS)
        layers = [
            (m.router, m, inputs[n][MASK.bool()].clone()) for n, m in find(model, MoE).items()
        ]
        assert torch.allclose(loss(), router_losses(layers))
        loss().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if ".router." in name}
