"""Laws of the training loop: its schedule, and that nothing but its seed and data decides it."""

import logging
import math

import pytest
import torch
from small import SPEC, make_images, make_routed, others_later, randomise, with_options
from small_language import TINY, make_corpus_split, make_language, make_text_split
from torch import nn

from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.data.splits import ImageSplit
from d2dmoe.errors import UserError
from d2dmoe.jobs.state import TrainingState
from d2dmoe.quality import validation_metrics
from d2dmoe.seeding import seed_for
from d2dmoe.spec import build
from d2dmoe.training import TrainingBatches, cross_entropy_loss, fit, lr_at, make_optimizer, set_lr

# A convolutional stem has batch norms, whose running statistics are a part of the state.
HARD = with_options(dropout=0.2, stem=[4, 4])
CPU = torch.device("cpu")
STEPS = 6  # two epochs of three
PARTIAL = 5 / 3  # epochs; five steps


class Cut(Exception):
    """Stands for a power cut."""


def config(**changes) -> TaskTrainingConfig:
    options = {
        "epochs": 2,
        "lr": 0.01,
        "batch_size": 8,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
        "augment": {"flip": True, "crop_padding": 1},
    }
    return TaskTrainingConfig.model_validate(options | changes)


def train(
    seed: int = 0,
    initial: int = 0,
    cut_at: int | None = None,
    state: TrainingState | None = None,
    cfg: TaskTrainingConfig | None = None,
    images: ImageSplit | None = None,
) -> tuple[dict[str, torch.Tensor], list[dict], int]:
    """Weights, history and the steps taken of a training, cut off before step `cut_at`."""
    cfg = cfg or config()
    torch.manual_seed(initial)
    model = build(HARD).train()
    taken = 0

    def losses(batch, progress):
        nonlocal taken
        if taken == cut_at:
            raise Cut
        taken += 1
        task = cross_entropy_loss(model(**batch[0]), batch[1], cfg.label_smoothing)
        return {"loss": task * (1 + progress), "task": task}

    held_out = make_images(10, seed=9)
    history = fit(
        model,
        losses,
        TrainingBatches(images or make_images(25), cfg, seed, CPU),
        cfg,
        name="test",
        state=state,
        validate=lambda: validation_metrics(model, held_out, 4, CPU),
    )
    return model.state_dict(), history, taken


def test_an_optimizer_for_graphs_takes_the_same_steps():
    weights = []
    for graphed in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        optimizer = make_optimizer(layer, config(), graphed)
        for lr in (0.1, 0.01):
            set_lr(optimizer, lr)
            assert [float(g["lr"]) for g in optimizer.param_groups] == pytest.approx([lr, lr])
            layer(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        weights.append(layer.weight.detach().clone())
    torch.testing.assert_close(*weights)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def uninterrupted():
    return train()


@pytest.fixture(scope="module")
def cut_short():
    """An uninterrupted training whose last epoch is a part of one."""
    return train(cfg=config(epochs=PARTIAL))


def by_hand(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> float:
    """Mean over rows of -sum p log q; rows [N, classes], targets probabilities of that shape."""
    targets = (1 - smoothing) * targets.double() + smoothing / targets.shape[-1]
    rows = logits.double() - logits.double().exp().sum(-1, keepdim=True).log()
    return -(targets * rows).sum(-1).mean().item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(4,), (4, 5)], ids=["classes", "tokens"])
def test_cross_entropy_of_indices_and_of_probabilities_by_hand(shape, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, 3, generator=generator)
    indices = torch.randint(3, shape, generator=generator)
    mixed = torch.rand(*shape, 3, generator=generator)
    mixed = mixed / mixed.sum(-1, keepdim=True)
    certain = nn.functional.one_hot(indices, 3).float()
    for targets, soft in ((indices, certain), (certain, certain), (mixed, mixed)):
        expected = by_hand(logits.flatten(0, -2), soft.flatten(0, -2), smoothing)
        found = cross_entropy_loss(logits, targets, smoothing)
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_of_half_precision_is_taken_in_single():
    logits, targets = torch.tensor([[60.0, 0.0]]).bfloat16(), torch.tensor([1])
    assert cross_entropy_loss(logits, targets).dtype == torch.float32


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


@pytest.mark.parametrize("make", [lambda: build(HARD), make_routed], ids=["dense", "routed"])
def test_weight_decay_is_on_every_matrix_but_on_no_bias_and_no_norm(make):
    model = make()
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


@pytest.mark.parametrize("name", TINY)
def test_weight_decay_of_language_models_is_on_every_matrix_once(name):
    model = make_language(name)
    decayed, free = (group["params"] for group in make_optimizer(model, config()).param_groups)
    assert all(p.ndim == 2 for p in decayed) and all(p.ndim == 1 for p in free)
    assert len({id(p) for p in decayed + free}) == len(decayed + free)
    assert {id(p) for p in decayed + free} == {id(p) for p in model.parameters()}


def test_frozen_parameters_are_not_trained():
    model = build(SPEC)
    model.requires_grad_(False)
    model.heads.requires_grad_(True)
    groups = make_optimizer(model, config()).param_groups
    assert sum(len(group["params"]) for group in groups) == 2


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(uninterrupted):
    weights, history, taken = train()
    assert taken == STEPS and [row["epoch"] for row in history] == [1, 2]
    assert same(weights, uninterrupted[0]) and history == uninterrupted[1]
    assert not same(train(seed=1)[0], weights)


@pytest.mark.parametrize("steps", others_later(range(STEPS + 1), [0, 2, STEPS]))
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


def test_the_last_epoch_may_be_a_part_of_one(cut_short):
    _, history, taken = cut_short
    assert taken == STEPS - 1
    assert [row["epoch"] for row in history] == [1, 1.6667]
    assert history[-1].keys() == history[0].keys()


@pytest.mark.parametrize("steps", others_later(range(STEPS), [0, 3]))
def test_resuming_in_a_partial_epoch_gives_the_same_bits(cut_short, tmp_path, steps):
    path, cfg = tmp_path / "state.safetensors", config(epochs=PARTIAL)
    if steps < STEPS - 1:
        with pytest.raises(Cut):
            train(cut_at=steps, state=TrainingState(path, every_s=0), cfg=cfg)
    else:
        train(state=TrainingState(path, every_s=0), cfg=cfg)
    weights, history, taken = train(state=TrainingState(path, every_s=0), cfg=cfg)
    assert taken == STEPS - 1 - steps
    assert same(weights, cut_short[0]) and history == cut_short[1]


@pytest.mark.parametrize(
    ("epochs", "steps"), [(0, 0), (0.3, 1), (1 / 3, 1), (0.65, 2), (1, 3), (1.7, 5), (2, 6)]
)
def test_fractions_of_an_epoch_are_steps(epochs, steps):
    batches = TrainingBatches(make_images(25), config(epochs=epochs), 0, CPU)
    assert batches.per_epoch == 3
    assert batches.total == len(list(batches.stream(0))) == steps


def test_a_shorter_training_sees_the_first_batches_of_a_longer_one():
    def targets(epochs: float) -> list[torch.Tensor]:
        cfg = config(epochs=epochs)
        return [y for _, y in TrainingBatches(make_images(25), cfg, 0, CPU).stream(0)]

    for one, other in zip(targets(PARTIAL), targets(2)[: STEPS - 1], strict=True):
        assert torch.equal(one, other)


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


def test_history_of_a_partial_epoch_holds_the_mean_over_its_own_steps():
    cfg, values, holder = config(epochs=PARTIAL), iter([1.0, 2.0, 6.0, 4.0, 7.0]), nn.Linear(1, 1)

    def losses(_batch, _progress):
        return {"loss": holder.weight.sum() * 0 + next(values)}

    batches = TrainingBatches(make_images(24), cfg, 0, CPU)
    history = fit(holder, losses, batches, cfg, name="test")
    assert [(row["epoch"], row["loss"]) for row in history] == [(1, 3.0), (1.6667, 5.5)]
    assert history[-1]["lr"] == lr_at(4, 5, cfg)


@pytest.mark.parametrize("count", [8, 5], ids=["a whole batch", "a set smaller than a batch"])
@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_the_gradients_of_a_batch_in_parts_add_up_to_its_own(accumulate, count):
    def one_step(accumulate: int) -> tuple[dict[str, torch.Tensor], list[dict]]:
        cfg = config(epochs=1, accumulate=accumulate, clip=None)
        model = randomise(build(SPEC))

        def losses(batch, _progress):
            loss = cross_entropy_loss(model(**batch[0]), batch[1], cfg.label_smoothing)
            return {"loss": 2 * loss, "task": loss}

        batches = TrainingBatches(make_images(count), cfg, 0, CPU)
        history = fit(model, losses, batches, cfg, name="test")
        return {name: p.grad for name, p in model.named_parameters()}, history

    (whole, (row,)), (parts, (its,)) = one_step(1), one_step(accumulate)
    assert its == pytest.approx(row, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_parts_of_a_batch_hold_its_samples_once_and_in_order():
    sizes, seen, cfg, holder = [], [], config(accumulate=4), nn.Linear(1, 1)

    def losses(batch, _progress):
        sizes.append(len(batch[1]))
        seen.append(batch[0]["x"])
        return {"loss": holder.weight.sum() * 0}

    batches = TrainingBatches(make_images(24), cfg, 0, CPU)
    fit(holder, losses, batches, cfg, name="test")
    assert sizes == [2] * 4 * STEPS
    whole = [inputs["x"] for inputs, _ in batches.stream(0)]
    assert torch.equal(torch.cat(seen), torch.cat(whole))


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
    assert same(weights, build(HARD).state_dict())
    assert history == [] and taken == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_user_error_with_a_remedy(bad):
    cfg, holder = config(), nn.Linear(1, 1)
    batches = TrainingBatches(make_images(24), cfg, 0, CPU)
    with pytest.raises(UserError, match=r"routers: the loss is .* at step \d+. Lower the learning"):
        fit(holder, lambda *_: {"loss": holder.weight.sum() * bad}, batches, cfg, name="routers")


def test_batches_are_a_function_of_seed_and_position():
    def stream(seed: int, start: int = 0):
        batches = TrainingBatches(make_images(25), config(), seed, CPU).stream(start)
        return [(inputs["x"], targets) for inputs, targets in batches]

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
    batches = TrainingBatches(make_images(1), config(epochs=12), 0, CPU)
    seen = {tuple(inputs["x"].flatten().tolist()) for inputs, _ in batches.stream(0)}
    assert len(seen) > 6


@pytest.mark.parametrize("split", [make_text_split((5, 12, 3, 7, 12)), make_corpus_split(5)])
def test_texts_are_trained_on_as_they_are_in_an_order_of_the_seed(split):
    cfg = TaskTrainingConfig(epochs=1.5, lr=0.1, batch_size=2)

    def stream(start: int = 0, seed: int = 0) -> list[torch.Tensor]:
        batches = TrainingBatches(split, cfg, seed, CPU).stream(start)
        return [inputs["input_ids"] for inputs, _ in batches]

    whole = stream()
    assert [len(ids) for ids in whole] == [2, 2, 2]
    assert all(map(torch.equal, whole[2:], stream(start=2)))
    given = {tuple(row) for row in split.read(torch.arange(5))[0].tolist()}
    seen = [tuple(row) for ids in whole[:2] for row in ids.tolist()]
    assert len(set(seen)) == 4  # every text at most once an epoch
    assert all(any(row == text[: len(row)] for text in given) for row in seen)
    others = [stream(seed=seed)[0] for seed in range(1, 5)]
    assert any(not torch.equal(other, whole[0]) for other in others)


def test_a_set_smaller_than_a_batch_is_one_batch():
    batches = TrainingBatches(make_images(5), config(), 0, CPU)
    assert batches.per_epoch == 1 and [len(y) for _, y in batches.stream(0)] == [5, 5]


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
