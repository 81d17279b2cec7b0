"""Laws of A-ViT: halting by hand-computed numbers, exact masking, cost, training."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from small import ABOUT, make_dense, make_images, make_inputs, read_from, with_options
from small_language import language_spec, make_language
from torch import Tensor, nn

from d2dmoe.checkpoint import load_dense_model, load_model, save_model
from d2dmoe.errors import CheckpointError
from d2dmoe.flops import count
from d2dmoe.jobs.run import Run
from d2dmoe.methods.avit.evaluation import evaluate_halting, halting_flops
from d2dmoe.methods.avit.halting import (
    CHANNEL,
    Halting,
    MeanField,
    Trace,
    add_halting,
    depth_prior,
    ponder_loss,
    prior_loss,
    quiet_channel,
    run_block,
)
from d2dmoe.methods.avit.options import AViTConfig
from d2dmoe.methods.avit.training import train_avit
from d2dmoe.models import names_where
from d2dmoe.surgery import find, watch

LAYERS, TOKENS = 4, 5
DEEP = with_options(layers=LAYERS)
RUN = Run(seed=0, device=torch.device("cpu"))
MEASURE = {"split": "test", "batch_size": 5, "values": []}
IMAGES = dataclasses.replace(make_images(12), about=ABOUT)
TRAINING = {"epochs": 20, "lr": 0.01, "batch_size": 4, "prior_weight": 1.0, "prior_std": 0.5}

# Scores of three tokens after each block but the last, in one sample.
SCORES = [[0.5, 0.995, 0.1], [0.3, 0.7, 0.1], [0.25, 0.7, 0.1]]


def trace_of(scores: list[list[float]]) -> Trace:
    halting = Halting(1, len(scores[0]), torch.device("cpu"))
    for row in scores:
        halting.step(torch.tensor([row]))
    return halting.finish()


def make_halting(gamma: float = 3.0, beta: float = -1.0) -> nn.Module:
    """A dense model of random weights whose tokens halt at all depths, the class token too."""
    model = make_dense(DEEP)
    with torch.no_grad():
        model.class_token[..., CHANNEL] += 1
    return add_halting(model, gamma, beta)


def traced(model: nn.Module, x: Tensor) -> tuple[Tensor, Trace]:
    with watch(find(model, MeanField), lambda _module, trace, _output: trace) as traces:
        logits = model(x)
    (trace,) = traces.values()
    return logits, trace


class Truncated(nn.Module):
    """The same computation for one image, removing every token that has halted."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        model, encoder = self.model, self.model.encoder
        x = torch.cat([model.class_token, model._process_input(x)], 1) + encoder.pos_embedding
        total, output = torch.zeros(x.shape[1]), 0.0
        for index, block in enumerate(encoder.layers):
            x = block(x)
            last = index == len(encoder.layers) - 1
            h = 1 - total if last else encoder.scores(x)[0]
            halts = total + h >= 0.99
            output = output + (1 - total[0] if halts[0] else h[0]) * x[:, 0]
            if halts[0]:
                break
            x, total = x[:, ~halts], (total + h)[~halts]
        return model.heads(encoder.ln(output))


def test_halting_of_hand_computed_scores():
    trace = trace_of(SCORES)
    assert trace.depths.tolist() == [[3, 1, 4]]
    torch.testing.assert_close(trace.remainders, torch.tensor([[0.2, 1.0, 0.7]]))
    expected = [[0.5, 1.0, 0.1], [0.3, 0.0, 0.1], [0.2, 0.0, 0.1], [0.0, 0.0, 0.7]]
    torch.testing.assert_close(trace.probabilities[:, 0], torch.tensor(expected))
    expected = [[0.5, 0.995, 0.1], [0.3, 0.0, 0.1], [0.25, 0.0, 0.1], [0.0, 0.0, 0.7]]
    torch.testing.assert_close(trace.scores[:, 0], torch.tensor(expected))


def test_a_sample_ends_when_its_class_token_halts():
    assert trace_of(SCORES).running.tolist() == [[3], [2], [2], [0]]


def test_losses_of_hand_computed_scores():
    trace = trace_of(SCORES)
    assert ponder_loss(trace).item() == pytest.approx((3.2 + 2.0 + 4.7) / 3)
    sums = torch.tensor([1.595, 0.4, 0.35, 0.7])  # over tokens, by layer
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = (prior * (prior * sums.sum() / sums).log()).sum()
    assert prior_loss(trace, prior).item() == pytest.approx(expected.item())
    assert prior_loss(trace, sums / sums.sum()).item() == pytest.approx(0, abs=1e-6)


def test_the_prior_is_a_gaussian_around_the_depth():
    near, far = 1 / (1 + 2 * torch.tensor(-0.5).exp()), 0.5
    expected = [(1 - near) / 2, near, (1 - near) / 2]
    torch.testing.assert_close(depth_prior(3, depth=2.0, std=1.0), torch.tensor(expected))
    torch.testing.assert_close(depth_prior(2, depth=1.5, std=0.3), torch.tensor([far, far]))


def test_the_weights_over_layers_sum_to_1():
    _, trace = traced(make_halting(), make_inputs(50))
    ones = torch.ones(50, TOKENS)
    torch.testing.assert_close(trace.probabilities.sum(0), ones)
    assert (trace.probabilities >= 0).all()
    assert set(trace.depths.flatten().tolist()) == {1, 2, 3, 4}


def test_a_halted_token_changes_nothing_for_others():
    block, generator = make_dense().encoder.layers[0], torch.Generator().manual_seed(0)
    x = torch.randn(3, TOKENS, 16, generator=generator)
    alive = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    other = torch.where(alive.unsqueeze(-1), x, 100.0)
    with torch.no_grad():
        states = run_block(block, x, alive)
        assert torch.equal(run_block(block, other, alive), states)
        for row, kept in enumerate(alive):
            expected = block(x[row : row + 1, kept])[0]
            torch.testing.assert_close(states[row, kept], expected, rtol=0, atol=1e-5)
            assert not states[row, ~kept].any()


@pytest.mark.workflow
def test_outputs_and_costs_are_those_of_the_truncated_computation():
    model, x = make_halting(), make_inputs(40)
    truncated = Truncated(model)
    with torch.no_grad():
        logits, trace = traced(model, x)
        expected = torch.cat([truncated(image[None]) for image in x])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    counted = sum(count(truncated, {"x": image[None]}) for image in x)
    full = count(model, {"x": x[:1]})
    found = halting_flops(model, full, trace.running)
    assert found.mean().item() == pytest.approx(counted / 40, rel=1e-14)
    assert counted < 40 * full
    ends = trace.depths[:, 0]
    assert len(ends.unique()) > 1 and (trace.depths > ends[:, None]).any()


def test_with_nobody_halting_output_and_cost_are_the_dense_models():
    plain, x = make_dense(DEEP), make_inputs(6)
    model = add_halting(copy.deepcopy(plain), gamma=1e-6, beta=-30.0)
    with torch.no_grad():
        logits, trace = traced(model, x)
        torch.testing.assert_close(logits, plain(x), rtol=0, atol=1e-5)
    full = count(plain, {"x": x[:1]})
    assert count(model, {"x": x[:1]}) == full
    assert (trace.running == TOKENS).all()
    assert (halting_flops(model, full, trace.running) == full).all()


def test_gradients_are_finite_when_all_tokens_have_halted():
    model = make_halting(beta=50.0)
    logits, trace = traced(model, make_inputs())
    assert (trace.depths == 1).all()
    loss = logits.square().sum() + ponder_loss(trace)
    (loss + prior_loss(trace, depth_prior(LAYERS, 2.0, 1.0))).backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is None or g.isfinite().all() for g in gradients)


def test_halting_adds_no_parameter():
    names = [name for name, _ in make_dense(DEEP).named_parameters()]
    assert [name for name, _ in make_halting().named_parameters()] == names


def test_a_quiet_channel_is_0_after_every_block_and_nobody_halts():
    plain = make_dense(DEEP)
    quiet_channel(plain)
    with torch.no_grad(), watch(dict(plain.encoder.layers.named_children()), see_output) as seen:
        expected = plain(make_inputs())
        logits, trace = traced(add_halting(plain, 5.0, -10.0), make_inputs())
    assert len(seen) == LAYERS
    assert all(not states[..., CHANNEL].any() for states in seen.values())
    assert (trace.depths == LAYERS).all()
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.01)


def see_output(_module: nn.Module, _input: Tensor, output: Tensor) -> Tensor:
    return output


def test_the_priors_gradient_does_not_fade_where_scores_are_small():
    model = make_dense(DEEP)
    quiet_channel(model)
    _, trace = traced(add_halting(model, 5.0, -20.0), make_inputs())
    prior_loss(trace, depth_prior(LAYERS, 1.0, 0.5)).backward()
    bias = model.encoder.layers[0].mlp.down.bias
    assert bias.grad[CHANNEL] < -1  # a higher score in the first block lowers the loss


@pytest.fixture
def parent(monkeypatch, tmp_path) -> Path:
    """A saved dense model; every stage reads `IMAGES`."""
    read_from(IMAGES, monkeypatch)
    save_model(tmp_path / "dense", make_dense(DEEP), DEEP)
    return tmp_path / "dense"


def train(parent: Path, name: str, **options) -> Path:
    path = parent.parent / name
    model, spec, _ = train_avit(parent, AViTConfig(**TRAINING | options), RUN)
    save_model(path, model, spec)
    return path


@pytest.mark.workflow
def test_a_lower_target_depth_costs_less(parent):
    flops = []
    for depth in (1.0, 5.0):
        path = train(parent, f"depth {depth}", depth=depth)
        (point,), layers, samples = evaluate_halting(path, "depth", MEASURE, RUN)
        assert samples["flops"].mean().item() == pytest.approx(point["flops"])
        assert point["knob"] == "depth" and point["knob_value"] == depth
        tokens = [row["tokens"] for row in layers]
        assert tokens[0] == TOKENS and tokens == sorted(tokens, reverse=True)
        flops.append(point["flops"])
    full = count(load_dense_model(parent)[0], {"x": make_inputs(1)})
    assert flops[0] < 0.5 * full and 0.95 * full < flops[1] <= full


def test_the_tables_have_the_columns_of_all_methods(parent):
    path = train(parent, "model", depth=3.0, epochs=0)
    (point,), layers, _ = evaluate_halting(path, "depth", MEASURE, RUN)
    columns = "knob knob_value flops params tokens accuracy loss perplexity"
    assert list(point) == columns.split()
    assert point["tokens"] == TOKENS
    assert point["params"] == sum(p.numel() for p in make_dense(DEEP).parameters())
    assert [list(row) for row in layers] == [["layer", "tokens"]] * LAYERS
    assert [row["layer"] for row in layers] == list(range(LAYERS))


def test_the_loss_is_the_weighted_sum(parent):
    cfg = AViTConfig(**TRAINING | {"epochs": 1.5, "depth": 2.0, "ponder_weight": 0.25})
    _, _, history = train_avit(parent, cfg, RUN)
    assert [row["epoch"] for row in history] == [1, pytest.approx(1.3333)]
    for row in history:
        columns = "epoch lr loss task ponder prior validation_accuracy validation_loss"
        assert list(row) == columns.split()
        total = row["task"] + 0.25 * row["ponder"] + row["prior"]
        assert row["loss"] == pytest.approx(total)


def test_the_same_seed_gives_the_same_bytes_and_another_depth_others(parent):
    options = {"depth": 1.5, "epochs": 2}
    first, second = (train(parent, name, **options) for name in ("first", "second"))
    other = train(parent, "other", **options | {"depth": 3.0})
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()


def test_a_saved_model_comes_back(parent):
    model, spec, _ = train_avit(
        parent, AViTConfig(**TRAINING | {"epochs": 1, "depth": 2.0, "gamma": 4.0}), RUN
    )
    save_model(parent.parent / "model", model, spec)
    loaded, its_spec = load_model(parent.parent / "model")
    assert its_spec == spec and not loaded.training
    assert spec.part("avit", parent) == {"depth": 2.0, "gamma": 4.0, "beta": -10.0}
    logits, trace = traced(model, make_inputs())
    found, its_trace = traced(loaded, make_inputs())
    assert torch.equal(found, logits)
    assert torch.equal(its_trace.probabilities, trace.probabilities)


def test_models_without_halting_are_refused(parent):
    message = "dense holds a model that the stage avit has not made; it was made by dense$"
    with pytest.raises(CheckpointError, match=message):
        evaluate_halting(parent, "depth", MEASURE, RUN)


def test_other_architectures_are_refused(parent):
    path = parent.parent / "bert"
    save_model(path, make_language("bert"), language_spec("bert"))
    halting = names_where("halts")
    with pytest.raises(CheckpointError, match=f"halts the tokens of a {halting}; .* is a bert"):
        train_avit(path, AViTConfig(**TRAINING | {"depth": 1.0}), RUN)
