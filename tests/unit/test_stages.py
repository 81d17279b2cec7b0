"""Laws of the stages one after the other, the same for every architecture."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from pydantic import BaseModel
from small import ABOUT, MODEL, make_images, make_inputs, others_later, read_from
from small_language import TINY, make_corpus_split, make_text_split

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.checkpoint import load_dense_model, load_model, read_model, save_model
from d2dmoe.config.model import TransformerConfig
from d2dmoe.config.stages import (
    ClusteringConfig,
    DenseConfig,
    RouterConfig,
    SparsifyConfig,
    TuneConfig,
)
from d2dmoe.errors import CheckpointError
from d2dmoe.ffn import FFN
from d2dmoe.formulas import router_flops
from d2dmoe.jobs.run import Run
from d2dmoe.lookup import resolve
from d2dmoe.models import ARCHITECTURES
from d2dmoe.moe import MoE, watch_inputs
from d2dmoe.padding import real_tokens
from d2dmoe.stages import STAGES
from d2dmoe.stages.activity import activity
from d2dmoe.stages.clustering import cluster
from d2dmoe.stages.dense import train_dense
from d2dmoe.stages.evaluate import evaluate, evaluate_dense, evaluate_true_norms
from d2dmoe.stages.router import train_routers
from d2dmoe.stages.sparsify import sparsify
from d2dmoe.stages.tune import tune
from d2dmoe.surgery import find

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
MODELS = {"vit": MODEL} | TINY
SPLITS = {
    "vit": dataclasses.replace(make_images(12), about=ABOUT),
    "bert": make_text_split(),
    "gpt2": make_corpus_split(6),
    "gemma": make_corpus_split(6),
}
TRAINING = {"epochs": 1.5, "lr": 0.01, "batch_size": 3}
CHAIN = ["dense", "sparsify", "clustering", "router"]
MEASURE = {"split": "test", "batch_size": 4, "values": []}


@pytest.fixture(scope="module", params=others_later(MODELS, ["vit"]))
def chain(request, tmp_path_factory) -> SimpleNamespace:
    """A conversion from the dense model to the routers."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    paths = {stage: folder / stage for stage in CHAIN}
    history = {}

    def save(stage: str, model, spec, rows) -> None:
        save_model(paths[stage], model, spec)
        history[stage] = rows

    with pytest.MonkeyPatch.context() as monkeypatch:
        read_from(SPLITS[name], monkeypatch)
        save("dense", *train_dense(None, DenseConfig(model=MODELS[name], **TRAINING), RUN))
        cfg = SparsifyConfig(mode="relu_hoyer", alpha=0.01, **TRAINING)
        save("sparsify", *sparsify(paths["dense"], cfg, RUN))
        save("clustering", *cluster(paths["sparsify"], ClusteringConfig(expert_size=4), RUN))
        cfg = RouterConfig(width=6, **TRAINING)
        save("router", *train_routers(paths["clustering"], cfg, RUN))
        active = activity(paths["sparsify"], "test", 4, RUN)
        (plain,), none, _ = evaluate_dense(paths["sparsify"], "dense", MEASURE, RUN)
        points, layers, _ = evaluate(
            paths["router"], "dynamic_k", MEASURE | {"values": [0.0, 1.0]}, RUN
        )
    assert none is None and len(layers) == 2 * len(points)
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
    _, before = read_model(chain.paths["clustering"])
    _, after = read_model(chain.paths["router"])
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(".router." in name for name in after.keys() - before.keys())


def test_with_true_norms_the_cost_is_that_of_the_truly_largest_experts(chain, monkeypatch):
    read_from(SPLITS[chain.name], monkeypatch)
    cfg = MEASURE | {"values": [0.0, 0.4]}
    points, layers, _ = evaluate_true_norms(chain.paths["router"], "true_norms", cfg, RUN)
    assert points[0]["flops"] == chain.points[0]["flops"] and points[0]["knob"] == "true_norms"
    assert points[0]["loss"] == pytest.approx(chain.points[0]["loss"], rel=1e-5)
    model, _ = load_model(chain.paths["router"])
    split, first = SPLITS[chain.name], next(iter(find(model, MoE).values()))
    with torch.no_grad(), watch_inputs(model) as inputs:
        batch, _ = split.batch(split.read(torch.arange(len(split))), CPU)
        model(**batch)
    z, real = next(iter(inputs.values())), real_tokens(batch)
    norms = first.output_norms(z if real is None else z[real])
    truly = (norms >= 0.4 * norms.amax(-1, keepdim=True)).sum(-1).double().mean()
    (row,) = [row for row in layers if row["layer"] == 0 and row["knob_value"] == 0.4]
    assert row["experts"] == pytest.approx(truly.item(), rel=1e-3)


@pytest.mark.workflow
def test_a_tuned_model_is_better_where_it_was_tuned_and_its_routers_learn_by_their_loss_alone(
    chain, monkeypatch
):
    read_from(SPLITS[chain.name], monkeypatch)
    parent, tau = chain.paths["router"], 0.7
    losses, models = {}, {0.0: load_model(parent)[0]}
    for weight in (1e-9, 1.0):
        cfg = TuneConfig(tau=(tau, tau), router_weight=weight, **TRAINING | {"epochs": 8})
        models[weight], spec, history = tune(parent, cfg, RUN)
        save_model(parent.with_name("tuned"), models[weight], spec)
        losses[weight] = history[-1]["task"]
    cfg = MEASURE | {"values": [tau]}
    before, after = (
        evaluate(path, "dynamic_k", cfg, RUN).points[0]["loss"]
        for path in (parent, parent.with_name("tuned"))
    )
    assert after < 0.95 * before
    assert models[1.0].state_dict().keys() == models[0.0].state_dict().keys()
    moes = [find(model, MoE) for model in models.values()]
    for fresh, idle, tuned in zip(*(x.values() for x in moes), strict=True):
        assert not torch.equal(fresh.up, tuned.up)
        assert not torch.equal(fresh.router.weights.up, tuned.router.weights.up)
        assert idle.operating_point == ("dynamic_k", 0.0)


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
    assert chain.history["clustering"] == []  # nothing is trained


@pytest.mark.parametrize("activation", others_later([None, *ACTIVATIONS], [None, "relu"]))
@pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS)
def test_the_dense_model_has_the_configured_activation_and_is_rebuilt_with_it(
    cfg: TransformerConfig, activation, monkeypatch, tmp_path
):
    read_from(SPLITS[cfg.architecture], monkeypatch)
    cfg = cfg.model_copy(update={"activation": activation})
    model, spec, _ = train_dense(None, DenseConfig(model=cfg, epochs=0, lr=0.01), RUN)
    save_model(tmp_path / "model", model, spec)
    assert spec.activation == activation
    for made in (model, load_model(tmp_path / "model")[0]):
        names = {ffn.activation_name for ffn in find(made, FFN).values()}
        assert names == {activation or ARCHITECTURES[cfg.architecture].activation}


# Every stage of the table, on a ViT: the one architecture that all of them take.

BASE = {"lr": 0.01, "epochs": 1, "batch_size": 6}
STEPS = {  # parent, and options
    "dense": (None, BASE | {"model": MODEL.model_dump()}),
    "finetune": ("dense", BASE),
    "prune": ("dense", BASE | {"kind": "prune", "heads": 0.5, "neurons": 0.5}),
    "distill": ("dense", BASE | {"kind": "distill", "model": MODEL.model_dump()}),
    "projections": ("dense", BASE | {"multiple": 4}),
    "sparsify": ("projections", BASE | {"mode": "relu_hoyer", "alpha": 0.01}),
    "clustering": ("sparsify", {"expert_size": 4, "projection_expert_size": 2}),
    "router": ("clustering", BASE | {"width": 6, "projection_width": 3}),
    "tune": ("router", BASE | {"tau": [0.2, 0.5]}),
    "ztw": ("dense", BASE),
    "avit": ("dense", BASE | {"depth": 1.5}),
    "cmoe": (
        "dense",
        BASE | {"expert_size": 4, "shared": 2, "firing": 6, "top_k": 4, "samples": 9},
    ),
    "factorllm": ("dense", BASE | {"active": 2}),
    "dyn_adapter": ("dense", BASE),
    "seer": ("router", BASE | {"active": 0.5, "removed": 0.25, "scope": "global"}),
    "sam": ("router", BASE | {"active": 0.5, "groups": 2}),
    "ldpruner": ("dense", BASE | {"removed": 2, "samples": 9}),
    "sensitivity": ("router", {"samples": 9, "batch_size": 4}),
    "quantize": ("router", {"weights": "int8"}),
    "thresholds": (
        "sparsify",
        {"score": "contextual", "expert_size": 4, "attention": True, "samples": 9, "batch_size": 4},
    ),
    "input_thresholds": ("dense", {"step": 0.3, "samples": 9, "batch_size": 4}),
}
ELSEWHERE = {  # options, of one stage or of all, that the stage does not read, and what does
    "threads": "the rule, which gives them to the job",
    "prune.kind": "the configuration, which tells the kinds of bases apart by it",
    "distill.kind": "the configuration, as for prune",
}


def noting(options: BaseModel, read: set[str], place: str = "") -> BaseModel:
    """The same options; the dotted name of each that is read is added to `read`."""
    kind = type(options)

    class Noting(kind):
        def __getattribute__(self, name):
            if name in kind.model_fields:
                read.add(place + name)
            return super().__getattribute__(name)

        def model_dump(self, **how):
            values = super().model_dump(**how)
            read.update(place + name for name in values)
            return values

    inner = {
        name: noting(value, read, f"{place}{name}.") if isinstance(value, BaseModel) else value
        for name, value in options
    }
    return Noting.model_construct(**inner)


def names_of(options: BaseModel, place: str = "") -> set[str]:
    """The dotted names of all options."""
    names = {place + name for name, _ in options}
    inner = [(name, value) for name, value in options if isinstance(value, BaseModel)]
    return names.union(*(names_of(value, f"{place}{name}.") for name, value in inner))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, SimpleNamespace]:
    """What every stage made of its parent, the path of its model, and which options it read."""
    folder, found = tmp_path_factory.mktemp("stages"), {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_from(SPLITS["vit"], monkeypatch)
        for name, stage in STAGES.items():
            parent, values = STEPS[name]
            options, read = resolve(stage.options).model_validate(values), set()
            path = found[parent].path if parent else None
            run = RUN if stage.trains or stage.calibrates else Run(seed=0, device=CPU)
            model, spec, history = resolve(stage.make)(path, noting(options, read), run)
            save_model(folder / name, model, spec)
            found[name] = SimpleNamespace(
                path=folder / name, model=model, spec=spec, history=history, options=options
            )
            found[name].read = read
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_of_a_stage_is_read(made, stage):
    step, names = made[stage], names_of(made[stage].options)
    elsewhere = {name for name in names if {name, f"{stage}.{name}"} & ELSEWHERE.keys()}
    assert names - step.read == elsewhere


@pytest.mark.parametrize("name", MODELS)
def test_every_option_of_an_architecture_is_read(name, monkeypatch):
    read_from(SPLITS[name], monkeypatch)
    options, read = DenseConfig(model=MODELS[name], epochs=0, lr=0.01), set()
    train_dense(None, noting(options, read), RUN)
    assert {x for x in names_of(options) if x.startswith("model.")} <= read


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_made_comes_back(made, stage):
    step = made[stage]
    model, spec = load_model(step.path)
    assert spec == step.spec and list(spec.parts) == list(step.spec.parts)
    with torch.no_grad():
        assert torch.equal(model(make_inputs()), step.model.eval()(make_inputs()))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_a_part_of_its_name_after_those_of_its_parent_or_none(made, stage):
    parent, _ = STEPS[stage]
    before = list(made[parent].spec.parts) if parent else []
    own = [stage] if STAGES[stage].rebuild else []
    assert list(made[stage].spec.parts) == before + own


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_a_history_where_it_trains_and_leaves_dense_models_where_it_says_so(
    made, stage
):
    assert bool(made[stage].history) == STAGES[stage].trains
    if STAGES[stage].dense:
        load_dense_model(made[stage].path)
        return
    with pytest.raises(CheckpointError, match="a dense one is needed"):
        load_dense_model(made[stage].path)
