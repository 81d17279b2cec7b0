"""Laws of Dyn-Adapter: the base stays to the byte, and untrained adapters give what it gives; what
adapters and heads cost; who is confident leaves."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import ABOUT, MODEL, make_images, others_later, randomise, read_from
from small_config import refusal, with_everything, with_language
from small_language import TEXTS, TINY, make_text_split

from d2dmoe.checkpoint import load_model, read_model, save_model
from d2dmoe.config.stages import DenseConfig
from d2dmoe.errors import ConfigError, ModelError
from d2dmoe.evaluation import cost_on
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.layers import describe
from d2dmoe.methods.dyn_adapter.adapters import AdaptedFFN, Adapter, add_adapters
from d2dmoe.methods.dyn_adapter.options import DynAdapterConfig
from d2dmoe.methods.dyn_adapter.training import train_dyn_adapter
from d2dmoe.methods.early_exits.evaluation import evaluate_exits, exit_costs
from d2dmoe.methods.early_exits.leaving import exit_blocks
from d2dmoe.models.build import create_model
from d2dmoe.plan.plan import load_plan
from d2dmoe.plan.variants import chains
from d2dmoe.spec import ModelSpec, build
from d2dmoe.stages.dense import train_dense
from d2dmoe.stages.evaluate import evaluate_dense
from d2dmoe.surgery import find

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
LAYERS, D, CLASSES, WIDTH = 3, 16, 3, 4
EXITS = LAYERS - 1
SPLITS = {
    "vit": dataclasses.replace(make_images(24), about=ABOUT),
    "bert": make_text_split((5, 12, 3, 7, 12, 4, 9, 3, 6)),
}
TRAINING: dict[str, Any] = {"epochs": 12, "lr": 0.02, "batch_size": 4, "width": WIDTH}
THRESHOLDS = [0.0, 0.4, 0.6, 0.9, 1.0]
MEASURE: dict[str, Any] = {"split": "test", "batch_size": 5, "values": THRESHOLDS}


MODELS = {"vit": MODEL, "bert": TINY["bert"]}
MODELS = {name: cfg.model_copy(update={"layers": LAYERS}) for name, cfg in MODELS.items()}


def spec_of(name: str) -> ModelSpec:
    about = {"vit": ABOUT, "bert": TEXTS}[name]
    options, _ = create_model(MODELS[name], about)
    return ModelSpec(architecture=name, options=options, data=about)


def save_dense(name: str, path: Path) -> None:
    """A dense model that has learnt a little of its samples."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_from(SPLITS[name], monkeypatch)
        options = DenseConfig(model=MODELS[name], epochs=6, lr=0.01, batch_size=6)
        model, spec, _ = train_dense(None, options, RUN)
    save_model(path, model, spec)


@pytest.fixture(scope="module", params=others_later(SPLITS, ["vit"]))
def case(request, tmp_path_factory) -> SimpleNamespace:
    """A saved dense model, and one that was trained from it; both read the same samples."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    save_dense(name, folder / "dense")

    def train(**changes) -> tuple[Any, list[dict]]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            read_from(SPLITS[name], monkeypatch)
            cfg = DynAdapterConfig(**TRAINING | changes)
            model, made, history = train_dyn_adapter(folder / "dense", cfg, RUN)
        save_model(folder / "model", model, made)
        return model, history

    def measure(path: Path = folder / "model") -> Any:
        with pytest.MonkeyPatch.context() as monkeypatch:
            read_from(SPLITS[name], monkeypatch)
            if path.name == "dense":
                return evaluate_dense(path, "dense", MEASURE, RUN)
            return evaluate_exits(path, "confidence", MEASURE, RUN)

    found = SimpleNamespace(name=name, folder=folder)
    train(epochs=0)
    found.untrained, _, _ = measure()
    found.model, found.history = train()
    found.points, found.layers, found.samples = measure()
    (found.dense,), _, _ = measure(folder / "dense")
    return found


def tokens(case: SimpleNamespace) -> float:
    """Of a sample, without padding."""
    return case.dense["tokens"]


def adapter_flops() -> int:
    """Of one adapter for a token, and of one head for a sample."""
    return 2 * 2 * D * WIDTH


HEAD = 2 * D * CLASSES


def test_the_dense_models_weights_stay_as_they_are_to_the_byte_and_keep_their_names(case):
    _, before = read_model(case.folder / "dense")
    _, after = read_model(case.folder / "model")
    assert all(after[name].equal(weight) for name, weight in before.items())
    added = after.keys() - before.keys()
    assert added and all(".adapter." in name or name.startswith("exits.") for name in added)
    assert not any(module.training for module in case.model.modules())


def test_untrained_adapters_change_nothing_and_who_passes_all_exits_gets_the_bases_answer(case):
    last = case.untrained[-1]
    assert last["knob_value"] == 1.0  # no head is as sure as that
    assert last["accuracy"] == case.dense["accuracy"]
    assert last["loss"] == pytest.approx(case.dense["loss"], rel=1e-6)


def test_at_confidence_1_all_run_to_the_end_and_pay_for_adapters_and_heads(case):
    last = case.points[-1]
    adapters = LAYERS * tokens(case) * adapter_flops()
    assert last["flops"] == pytest.approx(case.dense["flops"] + adapters + EXITS * HEAD, rel=1e-12)
    assert case.samples["flops"][-1].mean().item() == pytest.approx(last["flops"], rel=1e-6)
    inside = LAYERS * (2 * D * WIDTH + WIDTH + D)
    heads = EXITS * (2 * D + D * CLASSES + CLASSES)
    assert last["params"] == case.dense["params"] + inside + heads


def test_an_exit_costs_an_adapter_in_each_block_before_it_and_the_heads_passed(case):
    split = SPLITS[case.name]
    plain, own = _costs(case, with_adapters=False), _costs(case)
    lengths = torch.full((len(split),), 5) if split.lengths is None else split.lengths
    for index in range(EXITS + 1):
        blocks = min(index + 1, LAYERS)
        more = blocks * lengths.long() * adapter_flops()
        assert torch.equal(own[index] - plain[index], more)


def _costs(case: SimpleNamespace, with_adapters: bool = True) -> torch.Tensor:
    """FLOPs of leaving at each exit."""
    model, spec = load_model(case.folder / "model")
    if not with_adapters:
        for ffn in find(model, AdaptedFFN).values():
            ffn.adapter = torch.nn.Identity()
    return exit_costs(model, exit_blocks(model, spec, 1), SPLITS[case.name], CPU)


def test_at_confidence_0_all_leave_at_the_first_exit_and_cost_falls_with_the_knob(case):
    assert case.points[0]["flops"] == _costs(case)[0].double().mean().item()
    flops = [point["flops"] for point in case.points]
    assert flops == sorted(flops) and len({*flops}) >= 3
    assert case.layers is None


def test_training_lowers_the_loss_of_every_exit_and_reaches_all_adapters(case):
    first, last = case.history[0], case.history[-1]
    assert list(first)[2:5] == ["loss", "heads", "end"]
    for name in ("heads", "end", "validation_loss"):
        assert last[name] < 0.95 * first[name]
    assert last["loss"] == pytest.approx((EXITS * last["heads"] + last["end"]) / LAYERS)
    adapters = find(case.model, Adapter)
    assert len(adapters) == LAYERS and all(a.up.weight.any() for a in adapters.values())


def test_what_it_learns_moves_the_end_too(case):
    assert case.points[-1]["loss"] < 0.95 * case.untrained[-1]["loss"]


def test_a_saved_model_comes_back_whole(case):
    loaded, spec = load_model(case.folder / "model")
    assert spec.parts == {"dyn_adapter": {"width": WIDTH, "every": 1, "head_width": None}}
    split = SPLITS[case.name]
    inputs, _ = split.batch(split.read(torch.arange(len(split))), CPU)
    with torch.no_grad():
        assert torch.equal(logits_of(loaded, inputs), logits_of(case.model, inputs))
    assert cost_on(loaded, split, CPU) == cost_on(case.model, split, CPU)


def test_an_adapter_adds_a_bottleneck_to_what_the_ffn_gives():
    adapter = randomise(Adapter(6, 2))
    y = torch.randn(5, 6)
    hidden = torch.nn.functional.gelu(y @ adapter.down.weight.T + adapter.down.bias)
    expected = y + hidden @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(adapter(y), expected)


@pytest.mark.parametrize(("every", "exits"), [(1, 2), (2, 1)])
def test_heads_follow_every_so_many_blocks_and_may_have_a_hidden_layer(every, exits):
    spec = spec_of("vit")
    model: Any = add_adapters(build(spec), spec, 4, every, head_width=7)
    assert len(model.exits.heads) == exits and model.exits.every == every
    assert [m.out_features for m in model.exits.heads[0] if hasattr(m, "out_features")] == [7, 3]
    answers = model.exits.answers([torch.randn(5, D)])
    assert answers.shape == (1, 5, CLASSES)  # of the states that there are


def test_too_few_blocks_are_refused():
    spec = spec_of("vit")
    with pytest.raises(ConfigError, match="every = 3 .* last of 3 blocks; allowed: 1 to 2"):
        add_adapters(build(spec), spec, 4, 3, None)


def test_its_layers_are_described_by_no_plain_values(case):
    with pytest.raises(ModelError, match="saved by the pipeline alone"):
        describe(case.model)


# The configuration.


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dyn_adapter", None, "the task has no section dyn_adapter"),
        ("dyn_adapter.every", 2, "dyn_adapter.every = 2 leaves no block of 2 for an exit"),
        ("dyn_adapter.epochs", 4, "dyn_adapter.epochs = 4, but the task's"),
        ("dyn_adapter.width", 0, "dyn_adapter.width = 0"),
        ("select.confidence", [], "select.confidence is missing"),
    ],
)
def test_impossible_options_are_refused_before_the_first_job(raw, root, key, value, message):
    assert message in refusal(with_everything(raw), root, key, value)


def test_a_language_model_is_refused(raw, root):
    raw = with_language(raw, "gpt2")
    task = raw["tasks"]["tiny"]
    task["dyn_adapter"] = {"epochs": 5, "lr": 0.001}
    task["select"]["confidence"] = [0.5]
    variant = {"method": "dyn_adapter", "label": "Dyn-Adapter"}
    found = refusal(raw, root, "variants.adapted", variant)
    assert "variant 'adapted': dyn_adapter needs a classifier; leave it out" in found


def test_it_is_trained_on_the_dense_reference_for_as_many_passes(raw, root):
    task = load_plan(with_everything(raw), root).task("tiny")
    (found,) = chains(task, "adapted")
    assert [(stage, cfg.epochs) for stage, cfg in found[1:]] == [
        ("finetune", 5),
        ("dyn_adapter", 5),
    ]
