"""Trainings of models in memory: what they leave, what they change, and what they refuse."""

import copy
import os
import runpy
from pathlib import Path

import pytest
import torch
from small_language import make_language, make_tokens, split_language
from torch import nn
from torch.utils.data import DataLoader

from d2dmoe.api.routers import train_routers
from d2dmoe.api.sparsify import sparsify
from d2dmoe.errors import UnknownName, UserError
from d2dmoe.ffn import FFN
from d2dmoe.surgery import find

EXAMPLES = Path(__file__).parents[2] / "examples"
BATCHES = [make_tokens(4, 8, seed=seed) for seed in range(3)]
FEW = {"steps": 3, "lr": 1e-3}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[n]) for n, x in one.items())


def test_sparsify_lowers_the_penalty_and_fits_the_task():
    model = make_language("gpt2")
    history = sparsify(model, BATCHES, steps=30, lr=1e-2, alpha=0.05)
    first, last = history[0], history[-1]
    assert last["sparsity"] < first["sparsity"] / 2 and last["task"] < first["task"]
    assert [row["step"] for row in history] == list(range(1, 31))
    assert last["alpha"] == 0.05 and first["alpha"] == 0
    assert last["loss"] == pytest.approx(last["task"] + 0.05 * last["sparsity"], rel=1e-4)
    assert {ffn.activation_name for ffn in find(model, FFN).values()} == {"relu"}


def test_routers_learn_the_norms_and_the_model_stays():
    model = split_language(make_language("gpt2", "relu"))
    before = state(model)
    history = train_routers(model, BATCHES, steps=40, lr=1e-2, width=8)
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert equal(before, {n: x for n, x in state(model).items() if ".router." not in n})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_mode_frozen_weights_gradients_and_random_numbers_are_as_before(dtype):
    model = make_language("gemma", "relu").to(dtype).train()
    find(model, FFN).popitem()[1].eval().down.requires_grad_(False)
    frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    before, numbers, mode = state(model), torch.get_rng_state(), modes(model)
    sparsify(model, BATCHES, alpha=0.01, **FEW)
    assert modes(model) == mode and len(set(mode.values())) == 2
    assert {name: p.requires_grad for name, p in model.named_parameters()} == frozen
    same = {name for name, x in state(model).items() if torch.equal(x, before[name])}
    assert {name for name, trained in frozen.items() if not trained} <= same != before.keys()
    mode = modes(split_language(model))
    train_routers(model, BATCHES, width=4, **FEW)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(p.grad is None for p in model.parameters())
    assert modes(model).items() >= mode.items()
    assert torch.equal(torch.get_rng_state(), numbers)


def test_small_steps_are_not_lost_to_half_precision():
    model = make_language("gpt2", "relu").bfloat16()
    before = state(model)
    sparsify(model, BATCHES, steps=30, lr=3e-5, alpha=0)  # each below a weight's rounding
    assert not equal(before, state(model))


def test_the_seed_decides():
    def trained(seed: int) -> dict[str, torch.Tensor]:
        model, loader = make_language("gpt2"), DataLoader(torch.cat(BATCHES), 4, shuffle=True)
        sparsify(model, loader, alpha=0.01, seed=seed, **FEW)
        train_routers(split_language(model), loader, width=4, seed=seed, **FEW)
        return state(model)

    assert equal(trained(0), trained(0)) and not equal(trained(0), trained(1))


def test_a_model_that_does_not_say_what_it_takes_is_called_with_the_first_batch():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.act, self.down = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)

        def forward(self, points):
            return points + self.down(self.act(self.up(points)))

    torch.manual_seed(0)
    model, points = Own(), torch.randn(6, 8)
    sparsify(model, [points], alpha=0.01, loss=lambda out, _: (out - 1).square().mean(1), **FEW)
    assert len(find(model, FFN)) == 1


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"lr": 0}, "lr"),
        ({"lr": "1e-3"}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"alpha": -1}, "alpha"),
        ({"alpha": None}, "alpha"),
        ({"mode": "relu"}, "relu_hoyer"),
        ({"schedule": "cosine"}, "linear_warmup"),
        ({"batches": []}, "empty"),
        ({"batches": BATCHES[0]}, "list"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_changed(options, hint):
    model = make_language("gpt2")
    names = {ffn.activation_name for ffn in find(model, FFN).values()}
    batches = options.pop("batches", BATCHES)
    with pytest.raises(UserError, match=hint):
        sparsify(model, batches, **{**FEW, "alpha": 0.1, **options})
    assert {ffn.activation_name for ffn in find(model, FFN).values()} == names


def test_a_loss_that_is_not_finite_stops_and_leaves_the_weights_before_it():
    model, calls = make_language("gpt2", "relu"), []

    def loss(outputs, _batch):
        calls.append(state(model))
        return outputs.logits.mean() * (float("nan") if len(calls) == 3 else 1.0)

    with pytest.raises(UserError, match="step 3.*learning rate"):
        sparsify(model, BATCHES, steps=5, lr=1e-3, alpha=0.1, loss=loss)
    assert equal(calls[-1], state(model)) and not equal(calls[0], calls[-1])


def test_a_loss_without_gradient_and_a_model_without_trainable_weights_are_refused():
    model = make_language("gpt2", "relu")
    with pytest.raises(UserError, match="no gradient"):
        sparsify(model, BATCHES, alpha=0.1, loss=lambda out, _: out.logits.detach().mean(), **FEW)
    with pytest.raises(UserError, match="requires gradients"):
        sparsify(model.requires_grad_(False), BATCHES, alpha=0.1, **FEW)


def test_routers_of_a_failed_training_are_those_of_before():
    model = split_language(make_language("gpt2", "relu"))
    train_routers(model, BATCHES, width=4, **FEW)
    before, mode = state(model), modes(model)
    with pytest.raises(UserError, match="generator"):
        train_routers(model, iter(BATCHES), width=6, steps=4)
    assert equal(before, state(model)) and modes(model) == mode
    with pytest.raises(UnknownName, match="regression"):
        train_routers(model, BATCHES, steps=1, kind="regresion")
    with pytest.raises(UserError, match="width"):
        train_routers(model, BATCHES, steps=1, width=0)
    with pytest.raises(UserError, match="convert"):
        train_routers(make_language("gpt2"), BATCHES, steps=1)


@pytest.mark.workflow
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_examples_run(name, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_CPU", "true")
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 60
    runpy.run_path(str(path), run_name="__main__")
    assert "loss" in capsys.readouterr().out


def test_a_sparse_model_of_transformers_saves_and_loads_by_its_own_functions(tmp_path):
    model = make_language("gpt2")
    sparsify(model, BATCHES, alpha=0.01, **FEW)
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(BATCHES[0]).logits, model(BATCHES[0]).logits)
