"""Laws of the training loop: its schedule, and that nothing but its seed and data decides it."""

import logging
import math

import pytest
import torch
from small import MODEL, SPEC, make_images, make_routed
from torch import nn

from d2dmoe.checkpoint import dense_model
from d2dmoe.config.training import TrainingConfig
from d2dmoe.data import ImageSplit
from d2dmoe.errors import UserError
from d2dmoe.evaluate import validation_accuracy
from d2dmoe.seeding import seed_for
from d2dmoe.state import TrainingState
from d2dmoe.training import TrainingBatches, fit, lr_at, make_optimizer, task_loss

# A convolutional stem has batch norms, whose running statistics are a part of the state.
HARD = MODEL.model_copy(update={"dropout": 0.2, "stem": [4, 4]})
CPU = torch.device("cpu")
STEPS = 6  # two epochs of three


class Cut(Exception):
    """Stands for a power cut."""


def config(**changes) -> TrainingConfig:
    options = {
        "epochs": 2,
        "lr": 0.01,
        "batch_size": 8,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
        "augment": {"flip": True, "crop_padding": 1},
    }
    return TrainingConfig.model_validate(options | changes)


def train(
    seed: int = 0,
    initial: int = 0,
    cut_at: int | None = None,
    state: TrainingState | None = None,
    cfg: TrainingConfig | None = None,
    images: ImageSplit | None = None,
) -> tuple[dict[str, torch.Tensor], list[dict], int]:
    """Weights, history and the steps taken of a training, cut off before step `cut_at`."""
    cfg = cfg or config()
    torch.manual_seed(initial)
    model = dense_model(SPEC.with_(model=HARD.model_dump())).train()
    taken = 0

    def losses(batch, progress):
        nonlocal taken
        if taken == cut_at:
            raise Cut
        taken += 1
        task = task_loss(model(batch[0]), batch[1], cfg)
        return {"loss": task * (1 + progress), "task": task}

    held_out = make_images(10, seed=9)
    history = fit(
        model,
        losses,
        TrainingBatches(images or make_images(25), cfg, seed, CPU),
        cfg,
        name="test",
        state=state,
        validate=lambda: validation_accuracy(model, held_out, 4, CPU),
    )
    return model.state_dict(), history, taken


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def uninterrupted():
    return train()


def test_warm_up_is_linear_then_a_cosine_falls_to_min_lr():
    cfg = config(lr=1.0, min_lr=0.2, warmup=0.1)
    rates = [lr_at(step, 100, cfg) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert max(rates) == rates[10] == 1.0
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[55] == pytest.approx(0.6)  # half way down
    assert 0.2 < rates[99] < 0.201
    assert rates[40] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 3)))


@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_every_step_has_a_positive_rate_of_at_most_lr(warmup, total):
    rates = [lr_at(step, total, config(lr=1.0, warmup=warmup)) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates) and max(rates) == 1


@pytest.mark.parametrize("kind", ["dense", "routed"])
def test_weight_decay_is_on_every_matrix_but_on_no_bias_and_no_norm(kind):
    model = make_routed() if kind == "routed" else dense_model(SPEC.with_(model=HARD.model_dump()))
    decayed, free = make_optimizer(model, config(weight_decay=0.3)).param_groups
    assert decayed["weight_decay"] == 0.3 and free["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in (decayed, free))
    norms = (nn.LayerNorm, nn.BatchNorm2d)
    undecayed = {name for name in names.values() if name.endswith("bias")} | {
        f"{module}.weight" for module, m in model.named_modules() if isinstance(m, norms)
    }
    assert free | decayed == set(names.values())
    assert decayed & undecayed == set()
    assert undecayed == free


def test_frozen_parameters_are_not_trained():
    model = dense_model(SPEC)
    model.requires_grad_(False)
    model.heads.requires_grad_(True)
    groups = make_optimizer(model, config()).param_groups
    assert sum(len(group["params"]) for group in groups) == 2


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(uninterrupted):
    weights, history, taken = train()
    assert taken == STEPS and [row["epoch"] for row in history] == [1, 2]
    assert same(weights, uninterrupted[0]) and history == uninterrupted[1]
    assert not same(train(seed=1)[0], weights)


@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_resuming_after_any_step_gives_the_same_bits(uninterrupted, tmp_path, steps):
    path = tmp_path / "state.safetensors"
    if steps < STEPS:
        with pytest.raises(Cut):
            train(cut_at=steps, state=TrainingState(path, every_s=0))
    else:  # cut off after the last step, before the result was saved
        train(state=TrainingState(path, every_s=0))
    assert path.exists() == (steps > 0)
    initial = 1 if steps else 0  # what is restored does not depend on the new model's weights
    weights, history, taken = train(initial=initial, state=TrainingState(path, every_s=0))
    assert taken == STEPS - steps
    assert same(weights, uninterrupted[0]) and history == uninterrupted[1]


def test_being_cut_off_again_and_again_gives_the_same_bits(uninterrupted, tmp_path):
    path = tmp_path / "state.safetensors"
    for _ in range(STEPS - 1):
        with pytest.raises(Cut):
            train(cut_at=1, state=TrainingState(path, every_s=0))
    weights, history, _ = train(state=TrainingState(path, every_s=0))
    assert same(weights, uninterrupted[0]) and history == uninterrupted[1]


def test_saving_changes_nothing_and_waits_for_its_time(uninterrupted, tmp_path):
    path = tmp_path / "state.safetensors"
    weights, history, _ = train(state=TrainingState(path, every_s=3600))
    assert not path.exists()
    assert same(weights, uninterrupted[0]) and history == uninterrupted[1]


def test_history_holds_the_mean_of_each_loss_over_its_epoch():
    cfg, values = config(epochs=2), iter([1.0, 2.0, 6.0, 4.0, 4.0, 4.0])
    weight = nn.Parameter(torch.zeros(()))

    def losses(_batch, _progress):
        return {"loss": weight * 0 + next(values)}

    holder = nn.Module()
    holder.weight = weight
    batches = TrainingBatches(make_images(24), cfg, 0, CPU)
    history = fit(holder, losses, batches, cfg, name="test")
    assert [row["loss"] for row in history] == [3.0, 4.0]


def test_progress_runs_from_0_towards_1_in_equal_steps():
    seen, cfg, holder = [], config(), nn.Linear(1, 1)

    def losses(_batch, progress):
        seen.append(progress)
        return {"loss": holder.weight.sum()}

    fit(holder, losses, TrainingBatches(make_images(24), cfg, 0, CPU), cfg, name="test")
    assert seen == pytest.approx([i / STEPS for i in range(STEPS)])


def test_no_epochs_train_nothing():
    weights, history, taken = train(cfg=config(epochs=0))
    torch.manual_seed(0)
    assert same(weights, dense_model(SPEC.with_(model=HARD.model_dump())).state_dict())
    assert history == [] and taken == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_user_error_with_a_remedy(bad):
    cfg, holder = config(), nn.Linear(1, 1)
    batches = TrainingBatches(make_images(24), cfg, 0, CPU)
    with pytest.raises(UserError, match=r"routers: the loss is .* at step \d+. Lower the learning"):
        fit(holder, lambda *_: {"loss": holder.weight.sum() * bad}, batches, cfg, name="routers")


def test_batches_are_a_function_of_seed_and_position():
    def stream(seed: int, start: int = 0):
        return list(TrainingBatches(make_images(25), config(), seed, CPU).stream(2, start))

    whole = stream(0)
    assert len(whole) == STEPS
    for start in range(STEPS + 1):
        rest = stream(0, start)
        assert len(rest) == STEPS - start
        for (a, b), (c, d) in zip(whole[start:], rest, strict=True):
            assert torch.equal(a, c) and torch.equal(b, d)
    assert not torch.equal(whole[0][0], whole[3][0])  # epochs differ
    assert not torch.equal(whole[0][0], stream(1)[0][0])
    assert all(torch.allclose(y.sum(1), torch.ones(8)) for _, y in whole)


def test_an_image_is_changed_anew_in_every_epoch():
    batches = TrainingBatches(make_images(1), config(), 0, CPU)
    seen = {tuple(inputs.flatten().tolist()) for inputs, _ in batches.stream(12, 0)}
    assert len(seen) > 6


def test_a_set_smaller_than_a_batch_is_one_batch():
    batches = TrainingBatches(make_images(5), config(), 0, CPU)
    assert batches.per_epoch == 1 and [len(y) for _, y in batches.stream(2, 0)] == [5, 5]


def test_resuming_is_logged(tmp_path, caplog):
    path = tmp_path / "state.safetensors"
    with pytest.raises(Cut):
        train(cut_at=4, state=TrainingState(path, every_s=0))
    with caplog.at_level(logging.INFO, logger="d2dmoe"):
        train(state=TrainingState(path, every_s=0))
    assert "test continues after step 4" in caplog.text


def test_derived_seeds_differ_for_differing_parts():
    """A model's first weights must not share their random numbers with the first dropout masks."""
    parts = [(0,), (0, 0), (0, 0, 0), (1,), (0, 1), (1, 0), (5,), (5, 0), (0, 5), (5, 0, 0)]
    seeds = {seed_for(purpose, *p) for purpose in ("weights", "dropout") for p in parts}
    assert len(seeds) == 2 * len(parts)
    assert seed_for("order", 3, 4) == seed_for("order", 3, 4)
