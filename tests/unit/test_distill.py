"""Laws of distillation: the loss by its definition, what teaches, and what comes out."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from small import ABOUT, MODEL, SPEC, make_dense, make_images, read_from
from small_language import (
    TINY,
    language_spec,
    make_corpus_split,
    make_language,
    make_text_split,
    make_tokens,
)
from torch import nn

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.checkpoint import fresh_model, load_dense_model, load_model, save_model
from d2dmoe.compression.distill import distillation_loss
from d2dmoe.config.compression import DistillConfig
from d2dmoe.data.splits import CorpusSplit
from d2dmoe.errors import CheckpointError
from d2dmoe.ffn import FFN
from d2dmoe.flops import count
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.models import ARCHITECTURES
from d2dmoe.seeding import seed_for
from d2dmoe.spec import ModelSpec
from d2dmoe.stages import distill
from d2dmoe.stages.fitting import fit_task
from d2dmoe.surgery import find
from d2dmoe.training import cross_entropy_loss

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
NAMES = ["vit", "bert", "gpt2"]
SPLITS = {
    "vit": dataclasses.replace(make_images(12), about=ABOUT),
    "bert": make_text_split(),
    "gpt2": make_corpus_split(6),
}
STUDENTS = {n: MODEL if n == "vit" else TINY[n] for n in NAMES}
STUDENTS = {n: m.model_copy(update={"layers": 1, "d_ff": 12}) for n, m in STUDENTS.items()}
TRAINING = {"kind": "distill", "epochs": 1, "lr": 0.01, "batch_size": 4}


@pytest.fixture
def teachers(monkeypatch, tmp_path):
    """Saves a dense model; every stage reads the small split of its name."""

    def save(name: str) -> Path:
        read_from(SPLITS[name], monkeypatch)
        model = make_dense() if name == "vit" else make_language(name)
        save_model(tmp_path / name, model, SPEC if name == "vit" else language_spec(name))
        return tmp_path / name

    return save


def learn(path: Path, name: str, **options) -> tuple[nn.Module, ModelSpec, list[dict]]:
    cfg = DistillConfig(**TRAINING | {"model": STUDENTS[name]} | options)
    return distill.distill(path, cfg, RUN)


def test_the_loss_of_hand_computed_logits():
    student = torch.tensor([[0.0, 2 * math.log(3)], [0.0, 0.0]])  # softened by 2: 1/4, 3/4
    teacher = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    loss = distillation_loss(student, teacher, temperature=2.0).item()
    assert loss == pytest.approx(4 * kl / 2)
    tokens = distillation_loss(student[None], teacher[None], temperature=2.0).item()
    assert tokens == pytest.approx(loss)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_who_equals_the_teacher_has_nothing_to_learn(temperature):
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    student = (logits + 3).requires_grad_()  # the same probabilities
    loss = distillation_loss(student, logits, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6


def test_it_is_the_cross_entropy_of_a_sure_teacher():
    student = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 1, 4])
    sure = 1000.0 * nn.functional.one_hot(targets, 5)
    expected = cross_entropy_loss(student, targets)
    torch.testing.assert_close(distillation_loss(student, sure, 1.0), expected)


def test_of_a_high_temperature_it_matches_logits():
    """Hinton et al. 2015, section 2.1: the gradient tends to (student − teacher) / classes for
    logits of mean 0."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, generator=generator)
    student, teacher = (x - x.mean(-1, keepdim=True) for x in (student, teacher))
    student.requires_grad_()
    distillation_loss(student.double(), teacher.double(), 1000.0).backward()
    expected = (student - teacher).detach() / 5 / 3  # a mean over three targets
    torch.testing.assert_close(student.grad, expected, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_student_is_an_ordinary_dense_model(teachers, name, tmp_path):
    path = teachers(name)
    model, spec, history = learn(path, name, epochs=2)
    columns = "epoch lr loss task imitation validation_accuracy validation_loss"
    assert list(history[0]) == columns.split() and len(history) == 2
    for row in history:
        assert row["loss"] == pytest.approx(0.5 * row["task"] + 0.5 * row["imitation"])
    save_model(tmp_path / "student", model, spec)
    loaded, again = load_dense_model(tmp_path / "student")
    assert again == spec == fresh_model(STUDENTS[name], SPLITS[name].about)[1]
    inputs, _ = SPLITS[name].batch(SPLITS[name].read(torch.arange(1)), CPU)
    with torch.no_grad():
        assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))
    assert count(loaded, inputs) < count(load_model(path)[0], inputs)


def test_the_teacher_is_not_changed_and_its_own_weights_leave_nothing_to_imitate(
    teachers, monkeypatch, tmp_path
):
    path = teachers("vit")
    before = path.read_bytes()
    monkeypatch.setattr(distill, "fresh_model", lambda *_: load_dense_model(path))
    model, spec, history = learn(path, "vit", imitation=1.0, weight_decay=0.0, lr=1e-6)
    assert history[0]["imitation"] == pytest.approx(0, abs=1e-6)
    assert history[0]["loss"] == history[0]["imitation"] and history[0]["task"] > 0.1
    assert path.read_bytes() == before


@pytest.mark.workflow
def test_a_student_comes_to_answer_as_its_teacher(teachers):
    path = teachers("vit")
    model, _, history = learn(path, "vit", imitation=1.0, epochs=60)
    images = SPLITS["vit"]
    inputs, _ = images.batch(images.read(torch.arange(12)), CPU)
    with torch.no_grad():
        ours, theirs = model(**inputs), load_dense_model(path)[0](**inputs)
    assert history[-1]["imitation"] < 0.1 * history[0]["imitation"]
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.9


def test_without_imitation_it_is_the_task_alone(teachers, monkeypatch):
    """Of the same initial weights `train_dense` makes the same model."""
    path = teachers("bert")
    model, _, _ = learn(path, "bert", imitation=0.0)
    cfg = DistillConfig(**TRAINING | {"model": STUDENTS["bert"]})
    torch.manual_seed(seed_for("student", 0))
    plain, _ = fresh_model(cfg.model, SPLITS["bert"].about)
    fit_task(plain, cfg, RUN, "plain")
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_bytes_and_another_temperature_others(teachers, tmp_path):
    path, files = teachers("vit"), {}
    mixed = {"mixup": 0.8, "cutmix": 1.0}
    for name, temperature in {"first": 2.0, "second": 2.0, "other": 1.0}.items():
        model, spec, _ = learn(path, "vit", temperature=temperature, **mixed)
        save_model(tmp_path / name, model, spec)
        files[name] = (tmp_path / name).read_bytes()
    assert files["first"] == files["second"] != files["other"]


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_a_student_keeps_its_own_activation(teachers, activation):
    cfg = STUDENTS["vit"].model_copy(update={"activation": activation})
    model, spec, _ = learn(teachers("vit"), "vit", model=cfg, epochs=0)
    assert spec.activation == activation
    used = {ffn.activation_name for ffn in find(model, FFN).values()}
    assert used == {activation or ARCHITECTURES["vit"].activation}


def test_a_teacher_of_other_classes_is_refused(teachers, monkeypatch):
    path = teachers("gpt2")
    wider = CorpusSplit(make_tokens(6, 13).int(), SPLITS["gpt2"].about | {"vocab_size": 60})
    monkeypatch.setattr(distill, "open_split", lambda *_: wider)
    with pytest.raises(CheckpointError, match="predicts 50 classes, its student 60"):
        learn(path, "gpt2")


def test_a_damaged_teacher_is_named(teachers):
    path = teachers("vit")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        learn(path, "vit")
