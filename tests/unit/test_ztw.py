"""Laws of the baseline ZTW: its heads and ensembles, and what early exits cost and achieve."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import (
    ABOUT,
    MODEL,
    make_images,
    make_inputs,
    make_routed,
    others_later,
    randomise,
    read_from,
)
from small_language import TEXTS, TINY, make_text_split, make_tokens
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from d2dmoe.checkpoint import load_model, read_model, save_model
from d2dmoe.config.stages import DenseConfig
from d2dmoe.errors import CheckpointError, ConfigError
from d2dmoe.evaluation import cost_on, evaluate_dense, evaluate_routed
from d2dmoe.flops import count
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.methods.early_exits import evaluation
from d2dmoe.methods.early_exits.evaluation import evaluate_exits, exit_costs
from d2dmoe.methods.early_exits.leaving import UpTo, exit_blocks, leave_at
from d2dmoe.methods.ztw.exits import Cascade, Ensemble, Head
from d2dmoe.methods.ztw.options import ZTWConfig
from d2dmoe.methods.ztw.training import train_ztw
from d2dmoe.models import names_where
from d2dmoe.models.build import create_model
from d2dmoe.spec import ModelSpec, build
from d2dmoe.stages.dense import train_dense

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
LAYERS, D, CLASSES = 4, 16, 3  # so there are three exits
EXITS = LAYERS - 1
SPLITS = {
    "vit": dataclasses.replace(make_images(24), about=ABOUT),
    "bert": make_text_split((5, 12, 3, 7, 12, 4, 9, 3, 6)),
}
TRAINING = {"epochs": 20, "lr": 0.015, "batch_size": 6, "weight_decay": 0.0}
THRESHOLDS = [0.0, 0.6, 0.7, 0.8, 1.5]


def spec_of(name: str, layers: int = LAYERS) -> ModelSpec:
    cfg, about = {"vit": (MODEL, ABOUT), "bert": (TINY["bert"], TEXTS)}[name]
    options, _ = create_model(cfg.model_copy(update={"layers": layers}), about)
    return ModelSpec(architecture=name, options=options, data=about)


def with_exits(name: str, **shape) -> tuple[nn.Module, ModelSpec]:
    """A model with exits, all its weights random."""
    spec = spec_of(name).with_part("ztw", **{"every": 1, "width": None} | shape)
    return randomise(build(spec)), spec


def blocks_with_exits(model: nn.Module, spec: ModelSpec) -> dict[str, nn.Module]:
    return exit_blocks(model, spec, spec.part("ztw", Path("model"))["every"])


def all_of(name: str) -> tuple[dict, torch.Tensor]:
    split = SPLITS[name]
    return split.batch(split.read(torch.arange(len(split))), CPU)


def alone(name: str) -> list[dict]:
    """The samples one by one, without padding or mask."""
    split = SPLITS[name]
    batches = [split.batch(split.read(torch.tensor([i])), CPU)[0] for i in range(len(split))]
    return [{key: x[key] for key in x if key != "attention_mask"} for x in batches]


def evaluate(path: Path, values: list, batch_size: int = 5) -> list[dict]:
    name = read_model(path)[0].architecture
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_from(SPLITS[name], monkeypatch)
        cfg = {"split": "test", "batch_size": batch_size, "values": values}
        points, layers, samples = evaluate_exits(path, "confidence", cfg, RUN)
    assert layers is None
    for point, flops, losses in zip(points, samples["flops"], samples["loss"], strict=True):
        assert flops.mean().item() == pytest.approx(point["flops"])
        assert losses.mean().item() == pytest.approx(point["loss"], rel=1e-5)
    return points


def save_dense(name: str, path: Path) -> None:
    """A dense model that has learnt its samples by heart, so that its blocks tell them apart."""
    cfg = {"vit": MODEL, "bert": TINY["bert"]}[name].model_copy(update={"layers": LAYERS})
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_from(SPLITS[name], monkeypatch)
        options = DenseConfig(model=cfg, epochs=20, lr=0.01, batch_size=6)
        model, spec, _ = train_dense(None, options, RUN)
    save_model(path, model, spec)


def train(name: str, parent: Path, **options):
    cfg = ZTWConfig(**TRAINING | options)
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_from(SPLITS[name], monkeypatch)
        return train_ztw(parent, cfg, RUN)


@pytest.fixture(scope="module", params=others_later(SPLITS, ["vit"]))
def trained(request, tmp_path_factory) -> SimpleNamespace:
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    save_dense(name, folder / "dense")
    model, spec, history = train(name, folder / "dense")
    save_model(folder / "ztw", model, spec)
    return SimpleNamespace(
        name=name,
        dense=folder / "dense",
        path=folder / "ztw",
        model=model,
        spec=spec,
        history=history,
        points=evaluate(folder / "ztw", THRESHOLDS),
    )


def test_a_head_sees_the_state_and_the_logits_of_the_one_before_and_ensembles_multiply():
    exits = Cascade(2, every=1, d_model=2, num_classes=2, width=None)
    first, second = exits.heads
    with torch.no_grad():
        for parameter in exits.parameters():
            parameter.zero_()
        for norm in (first.state_norm, second.state_norm, second.cascade_norm):
            norm.weight.fill_(1)
        first.out.weight[0, 0] = math.log(3)  # of the state's first channel
        second.out.weight[0, 2] = math.log(4)  # of the previous head's first logit
        second.out.weight[1, 1] = math.log(2)  # of the state's second channel
        exits.ensembles[1].log_weights.copy_(torch.tensor([1.0, 2.0]).log())
        exits.ensembles[1].bias.copy_(torch.tensor([1.0, 3.0]).log())
        states = torch.tensor([[[5.0, -5.0]], [[-7.0, 7.0]]])  # norms: (1, -1) and (-1, 1)
        heads, ensembles = exits(states)
    # The first head's logits (log 3, 0) reach the second normalised, as (1, -1).
    probabilities = [[[3 / 4, 1 / 4]], [[2 / 3, 1 / 3]]]
    torch.testing.assert_close(heads.softmax(-1), torch.tensor(probabilities), atol=1e-4, rtol=0)
    # 3/4 · (2/3)² = 1/3 against 3 · 1/4 · (1/3)² = 1/12
    expected = torch.tensor([[[3 / 4, 1 / 4]], [[4 / 5, 1 / 5]]])
    torch.testing.assert_close(ensembles.softmax(-1), expected, atol=1e-4, rtol=0)


def test_a_fresh_ensemble_is_the_geometric_mean():
    probabilities = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]], [[0.8, 0.2]]])
    mean = probabilities.prod(0) ** (1 / 3)
    found = Ensemble(3, 2)(probabilities.log()).softmax(-1)
    torch.testing.assert_close(found, mean / mean.sum())


def test_no_gradient_reaches_the_head_before_nor_a_head_from_the_ensembles():
    exits = randomise(Cascade(3, every=1, d_model=4, num_classes=3, width=None))
    heads, ensembles = exits(torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)))
    heads[2].square().sum().backward(retain_graph=True)
    reached = {name for name, p in exits.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached and all(name.startswith("heads.2.") for name in reached)
    exits.zero_grad()
    ensembles.square().sum().backward()
    reached = {name for name, p in exits.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in exits.named_parameters() if "ensembles" in name}


def test_fewer_states_give_the_first_exits_outputs():
    exits = randomise(Cascade(3, every=1, d_model=4, num_classes=3, width=5))
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    for all_, some in zip(exits(states), exits(states[:2]), strict=True):
        assert torch.equal(all_[:2], some)


def test_a_head_may_have_a_hidden_layer():
    head = Head(4, 3, width=7, first=False)
    assert head.hidden[0].weight.shape == (7, 4) and head.out.weight.shape == (3, 7 + 3)


def test_a_sample_leaves_at_the_first_exit_whose_confidence_reaches_the_threshold():
    confidence = torch.tensor([[0.5, 0.9, 0.2], [0.8, 0.3, 0.4]])
    assert leave_at(confidence, 0.5).tolist() == [0, 0, 2]
    assert leave_at(confidence, 0.75).tolist() == [1, 0, 2]
    assert leave_at(confidence, 0.0).tolist() == [0, 0, 0]
    assert leave_at(confidence, 1.1).tolist() == [2, 2, 2]


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2]), (2, [1]), (3, [2])])
@pytest.mark.parametrize("name", SPLITS)
def test_exits_follow_every_so_many_blocks_but_never_the_last(name, every, expected):
    model, spec = with_exits(name, every=every)
    stem = {"vit": "encoder.layers.encoder_layer_", "bert": "bert.encoder.layer."}[name]
    assert list(blocks_with_exits(model, spec)) == [f"{stem}{i}" for i in expected]
    assert len(model.exits.heads) == len(expected)


def truncated(name: str, model: nn.Module, inputs: dict, blocks: int) -> int:
    """FLOPs of a model's first blocks on one sample, called part by part."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know it
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        if name == "vit":
            patches = model.conv_proj(inputs["x"]).flatten(2).mT
            z = torch.cat([model.class_token, patches], 1) + model.encoder.pos_embedding
            layers = model.encoder.layers
        else:
            z, layers = model.bert.embeddings(inputs["input_ids"]), model.bert.encoder.layer
        for layer in layers[:blocks]:
            z = layer(z)
    torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops()


def head_flops(heads: int) -> int:
    """Of that many heads without a hidden layer; only the first sees no logits."""
    return 2 * CLASSES * (heads * D + (heads - 1) * CLASSES)


@pytest.mark.workflow
@pytest.mark.parametrize("name", SPLITS)
def test_an_exit_costs_the_blocks_before_it_and_the_heads_passed(name):
    model, spec = with_exits(name)
    costs = exit_costs(model, blocks_with_exits(model, spec), SPLITS[name], CPU)
    samples = alone(name)
    assert costs.shape == (EXITS + 1, len(samples))
    for i, inputs in enumerate(samples):
        blocks = [truncated(name, model, inputs, blocks) for blocks in range(1, LAYERS)]
        expected = [cost + head_flops(n) for n, cost in enumerate(blocks, 1)]
        expected.append(count(model, inputs) + head_flops(EXITS))
        assert costs[:, i].tolist() == expected


def test_a_hidden_layer_costs_its_products():
    wide, plain = (with_exits("vit", width=width) for width in (5, None))
    costs = [exit_costs(m, blocks_with_exits(m, s), SPLITS["vit"], CPU) for m, s in (wide, plain)]
    more = 2 * (D * 5 + 5 * CLASSES - D * CLASSES)  # per head
    assert (costs[0] - costs[1])[:, 0].tolist() == [more, 2 * more, 3 * more, 3 * more]


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_model_in_its_mode(training):
    model, spec = with_exits("vit")
    model.train(training)
    exit_costs(model, blocks_with_exits(model, spec), SPLITS["vit"], CPU)
    assert all(module.training == training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_at_threshold_0_all_leave_at_the_first_exit(trained):
    point, samples = trained.points[0], alone(trained.name)
    blocks = blocks_with_exits(trained.model, trained.spec)
    expected = [truncated(trained.name, trained.model, x, 1) + head_flops(1) for x in samples]
    assert point["flops"] == sum(expected) / len(samples)
    inputs, targets = all_of(trained.name)
    with torch.no_grad():
        logits = UpTo(trained.model, blocks, 0)(**inputs)
    assert point["accuracy"] == (logits.argmax(-1) == targets).double().mean().item()
    loss = nn.functional.cross_entropy(logits, targets).item()
    assert point["loss"] == pytest.approx(loss, rel=1e-5)


def test_above_1_none_leaves_early_and_the_answers_are_the_dense_models(trained):
    point, (model, _) = trained.points[-1], load_model(trained.dense)
    (plain,) = evaluate_dense(model, SPLITS[trained.name], 5, CPU).points
    assert point["accuracy"] == plain["accuracy"]
    assert point["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert point["perplexity"] == pytest.approx(plain["perplexity"], rel=1e-5)
    assert point["flops"] == pytest.approx(plain["flops"] + head_flops(EXITS), rel=1e-14)
    assert point["tokens"] == plain["tokens"]
    heads = sum(parameter.numel() for parameter in trained.model.exits.parameters())
    assert point["params"] == plain["params"] + heads


def test_cost_falls_with_the_threshold(trained):
    costs = [point["flops"] for point in trained.points]
    assert costs == sorted(costs) and len(set(costs)) >= 4


@pytest.mark.workflow
def test_points_are_what_samples_achieve_and_cost_that_really_stop(trained):
    """One sample after the other, exit after exit, none of them padded."""
    blocks = blocks_with_exits(trained.model, trained.spec)
    _, targets = all_of(trained.name)
    for threshold, point in zip(THRESHOLDS, trained.points, strict=True):
        flops = loss = correct = 0
        for inputs, target in zip(alone(trained.name), targets, strict=True):
            for exit_ in (UpTo(trained.model, blocks, i) for i in range(EXITS + 1)):
                with torch.no_grad():
                    logits = exit_(**inputs)[0]
                if logits.softmax(-1).max() >= threshold:
                    break
            flops += count(exit_, inputs)
            loss -= logits.log_softmax(-1)[target].item()
            correct += int(logits.argmax() == target)
        assert point["flops"] == flops / len(targets)
        assert point["accuracy"] == correct / len(targets)
        assert point["loss"] == pytest.approx(loss / len(targets), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 100])
def test_the_batch_size_changes_neither_quality_nor_cost(trained, batch_size):
    for one, other in zip(
        trained.points, evaluate(trained.path, THRESHOLDS, batch_size), strict=True
    ):
        assert one["flops"] == other["flops"] and one["accuracy"] == other["accuracy"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_the_model_runs_once_for_all_thresholds(trained, monkeypatch):
    runs = []
    monkeypatch.setattr(evaluation, "exit_costs", lambda *_: torch.zeros(EXITS + 1, 24))
    monkeypatch.setattr(evaluation, "cost_on", lambda *_: SimpleNamespace(tokens=5))
    original = evaluation.logits_of
    monkeypatch.setattr(evaluation, "logits_of", lambda *args: runs.append(1) or original(*args))
    evaluate(trained.path, THRESHOLDS, batch_size=3)
    assert len(runs) == len(SPLITS[trained.name]) / 3


def test_points_have_the_columns_of_routed_models(trained):
    (routed,), *_ = evaluate_routed(make_routed(), SPLITS["vit"], "top_k", [1], 5, CPU)
    for value, point in zip(THRESHOLDS, trained.points, strict=True):
        assert list(point) == list(routed)
        assert (point["knob"], point["knob_value"]) == ("confidence", value)


def test_training_leaves_the_dense_model_bitwise_as_it_was(trained):
    _, before = read_model(trained.dense)
    _, after = read_model(trained.path)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(name.startswith("exits.") for name in after.keys() - before.keys())
    assert not any(module.training for module in trained.model.modules())


def test_training_lowers_the_loss_of_heads_and_of_ensembles(trained):
    first, last = trained.history[0], trained.history[-1]
    assert list(first)[2:] == [
        *("loss", "heads", "ensembles"),
        *("validation_accuracy", "validation_loss"),
    ]
    for name in ("heads", "ensembles", "validation_loss"):
        assert last[name] < 0.8 * first[name]
    assert last["loss"] == pytest.approx(last["heads"] + last["ensembles"])


def test_the_validation_columns_are_the_last_exits(trained):
    """The split that trains is here the one that validates."""
    inputs, targets = all_of(trained.name)
    blocks = blocks_with_exits(trained.model, trained.spec)
    with torch.no_grad():
        logits = UpTo(trained.model, blocks, EXITS - 1)(**inputs)
    last = trained.history[-1]
    assert last["validation_accuracy"] == (logits.argmax(-1) == targets).double().mean().item()
    loss = nn.functional.cross_entropy(logits, targets).item()
    assert last["validation_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.workflow
def test_the_same_seed_gives_the_same_bytes(trained, tmp_path):
    for epochs in (TRAINING["epochs"], 1):
        model, spec, _ = train(trained.name, trained.dense, epochs=epochs)
        save_model(tmp_path / "again", model, spec)
        same = (tmp_path / "again").read_bytes() == trained.path.read_bytes()
        assert same == (epochs == TRAINING["epochs"])


def test_a_saved_model_comes_back_whole_and_its_forward_is_the_dense_one(trained):
    loaded, spec = load_model(trained.path)
    parent, _ = load_model(trained.dense)
    assert spec == trained.spec and spec.parts == {"ztw": {"every": 1, "width": None}}
    inputs, _ = all_of(trained.name)
    blocks = [blocks_with_exits(model, spec) for model in (loaded, trained.model)]
    with torch.no_grad():
        for i in range(EXITS):
            ours = (UpTo(loaded, blocks[0], i), UpTo(trained.model, blocks[1], i))
            assert torch.equal(ours[0](**inputs), ours[1](**inputs))
        assert torch.equal(logits_of(loaded, inputs), logits_of(parent, inputs))
    assert cost_on(loaded, SPLITS[trained.name], CPU) == cost_on(parent, SPLITS[trained.name], CPU)


def test_an_exit_computes_nothing_after_its_block():
    model, spec = with_exits("bert")
    model.bert.encoder.layer[2].register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    with torch.no_grad():
        UpTo(model, blocks_with_exits(model, spec), 1)(input_ids=make_tokens())


def test_other_errors_than_leaving_come_through():
    model, spec = with_exits("vit")
    with pytest.raises(AssertionError, match="image height"):
        UpTo(model, blocks_with_exits(model, spec), 0)(x=make_inputs()[:, :, :4])


def test_an_architecture_without_a_class_token_is_refused():
    spec = ModelSpec(architecture="gpt2", options={}, data={})
    message = f"'gpt2' has no class token, .*; these have one: {names_where('class_token')}"
    with pytest.raises(CheckpointError, match=message):
        exit_blocks(nn.Module(), spec, 1)


def test_too_few_blocks_are_refused():
    with pytest.raises(ConfigError, match="every = 4 .* last of 4 blocks; allowed: 1 to 3"):
        with_exits("vit", every=4)


def test_a_model_without_exits_is_refused(trained):
    message = "dense holds a model without early exits"
    with pytest.raises(CheckpointError, match=message):
        evaluate(trained.dense, [0.5])
