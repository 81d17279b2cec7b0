"""Laws of the stages one after the other, the same for every architecture."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from d2dmoe.stages.split import split
from small import ABOUT, MODEL, make_images
from small_language import TINY, make_corpus_split, make_text_split

from d2dmoe.checkpoint import read_model, save_model
from d2dmoe.config.model import TransformerConfig
from d2dmoe.config.stages import RouterConfig, SparsifyConfig, SplitConfig
from d2dmoe.config.training import TrainingConfig
from d2dmoe.conversion import load_model
from d2dmoe.data.splits import Split
from d2dmoe.ffn import FFN
from d2dmoe.flops import router_flops
from d2dmoe.jobs.run import Run
from d2dmoe.moe import MoE
from d2dmoe.stages import dense, evaluate, routers, sparsify
from d2dmoe.surgery import find

CPU = torch.device("cpu")
DATA = Path("unused")
RUN = Run(seed=0, device=CPU)
MODELS = {"vit": MODEL} | TINY
SPLITS = {
    "vit": dataclasses.replace(make_images(12), about=ABOUT),
    "bert": make_text_split(),
    "gpt2": make_corpus_split(6),
    "gemma": make_corpus_split(6),
}
OPTIONS = {"epochs": 1.5, "lr": 0.01, "batch_size": 3}
STAGES = ["dense", "sparsify", "split", "router"]


def read_from(samples: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every stage read these samples in place of prepared files."""
    for module in (dense, sparsify, routers, evaluate):
        monkeypatch.setattr(module, "open_split", lambda _folder, _name: samples)


@pytest.fixture(scope="module", params=MODELS)
def chain(request, tmp_path_factory) -> SimpleNamespace:
    """A conversion from the dense model to the routers."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    paths = {stage: folder / stage for stage in STAGES}
    history = {}

    def save(stage: str, model, spec, rows=None) -> None:
        save_model(paths[stage], model, spec)
        history[stage] = rows

    with pytest.MonkeyPatch.context() as monkeypatch:
        read_from(SPLITS[name], monkeypatch)
        save("dense", *dense.train_dense(MODELS[name], TrainingConfig(**OPTIONS), DATA, RUN))
        cfg = SparsifyConfig(mode="relu_hoyer", alpha=0.01, **OPTIONS)
        save("sparsify", *sparsify.sparsify(paths["dense"], cfg, DATA, RUN))
        save("split", *split(paths["sparsify"], SplitConfig(expert_size=4), seed=0))
        cfg = RouterConfig(width=6, **OPTIONS)
        save("router", *routers.train_routers(paths["split"], cfg, DATA, RUN))
        active = sparsify.activity(paths["sparsify"], DATA, "test", 4, RUN)
        (plain,) = evaluate.evaluate_dense_model(paths["sparsify"], DATA, "test", 4, RUN)
        points, layers = evaluate.evaluate(
            paths["router"], "dynamic_k", [0.0, 1.0], DATA, "test", 4, RUN
        )
    return SimpleNamespace(
        name=name, paths=paths, history=history, active=active, dense=plain, points=points
    )


def test_the_classes_own_modules_stay_around_the_experts(chain):
    models = {stage: load_model(path)[0] for stage, path in chain.paths.items()}
    assert len({type(model) for model in models.values()}) == 1
    assert [len(find(model, FFN)) for model in models.values()] == [2, 2, 0, 0]
    assert [len(find(model, MoE)) for model in models.values()] == [0, 0, 2, 2]


def test_at_tau_0_the_last_model_is_the_sparsified_one_and_costs_its_routers_more(chain):
    point, _ = chain.points
    for metric in ("loss", "perplexity"):
        assert point[metric] == pytest.approx(chain.dense[metric], rel=1e-4)
    assert point["accuracy"] == chain.dense["accuracy"]
    routers = 2 * chain.dense["tokens"] * router_flops(16, 6, 8)
    assert point["flops"] == pytest.approx(chain.dense["flops"] + routers, rel=1e-14)
    assert chain.points[1]["flops"] < point["flops"]


def test_training_the_routers_changes_nothing_else(chain):
    _, before = read_model(chain.paths["split"])
    _, after = read_model(chain.paths["router"])
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(".router." in name for name in after.keys() - before.keys())


def test_every_token_of_the_test_samples_is_in_the_histogram(chain):
    lengths = SPLITS[chain.name].lengths
    tokens = 12 * 5 if lengths is None else int(lengths.sum())
    for layer in (0, 1):
        rows = [row for row in chain.active if row["layer"] == layer]
        assert sum(row["tokens"] for row in rows) == tokens
        assert all(0 <= row["active"] <= row["d_ff"] == 32 for row in rows)


def test_histories_have_a_row_for_each_epoch_begun(chain):
    validated = ["validation_accuracy", "validation_loss"]
    columns = {
        "dense": ["epoch", "lr", "loss", *validated],
        "sparsify": ["epoch", "lr", "loss", "task", "sparsity", *validated],
        "router": ["epoch", "lr", "loss"],
    }
    for stage, names in columns.items():
        rows = chain.history[stage]
        assert [row["epoch"] for row in rows] == [1, 1.5]
        assert all(list(row) == names for row in rows)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS)
def test_the_dense_model_has_the_configured_activation_and_is_rebuilt_with_it(
    cfg: TransformerConfig, activation, monkeypatch, tmp_path
):
    read_from(SPLITS[cfg.architecture], monkeypatch)
    cfg = cfg.model_copy(update={"activation": activation})
    untrained = TrainingConfig(epochs=0, lr=0.01)
    model, spec, _ = dense.train_dense(cfg, untrained, DATA, RUN)
    save_model(tmp_path / "model", model, spec)
    own = "gelu_tanh" if cfg.architecture in ("gpt2", "gemma") else "gelu"
    for made in (model, load_model(tmp_path / "model")[0]):
        names = {ffn.activation_name for ffn in find(made, FFN).values()}
        assert names == {own if activation == "gelu" else "relu"}
