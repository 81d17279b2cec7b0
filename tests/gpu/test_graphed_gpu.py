"""Steps that are recorded as CUDA graphs train as those that are not."""

import logging

import pytest
import torch
from small import make_images, with_options
from small_language import make_corpus_split, make_language

from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.data.batches import TrainingBatches
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.state import TrainingState
from d2dmoe.optimizer import lr_at
from d2dmoe.sparsity import alpha_at, penalty, watch_activations
from d2dmoe.spec import build
from d2dmoe.training import cross_entropy_loss, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
HARD = with_options(dropout=0.2, stem=[4, 4])  # draws, and running statistics


def train(graphed, model, split, state=None, stop=None, waits=False):
    """Weights and history; a convolution stem, dropout, a rising penalty and clipping."""
    cfg = TaskTrainingConfig.model_validate(
        {"epochs": 5, "lr": 0.003, "batch_size": 8, "clip": 1.0, "label_smoothing": 0.1}
    )
    model.cuda().train()
    calls = 0
    with watch_activations(model) as activations:

        def losses(batch, done):
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            task = cross_entropy_loss(logits_of(model, batch[0]), batch[1], cfg.label_smoothing)
            if waits:
                task = task + 0.0 * task.item()
            sparsity = penalty("relu_hoyer", activations.values())
            weight = alpha_at("linear_warmup", 0.01, done)
            return {"loss": task + weight * sparsity, "task": task, "sparsity": sparsity}

        history = fit(
            model,
            losses,
            TrainingBatches(split, cfg, 0, CUDA),
            cfg,
            name="test",
            state=state,
            graphed=graphed,
        )
    return model.state_dict(), history, calls


def vit():
    torch.manual_seed(0)
    return build(HARD)


def close(found, expected):
    for name, tensor in expected[0].items():
        torch.testing.assert_close(found[0][name], tensor, rtol=2e-3, atol=2e-4, msg=name)
    for row, wanted in zip(found[1], expected[1], strict=True):
        assert row == pytest.approx(wanted, rel=2e-3)


def test_a_graphed_training_is_the_same_training():
    """15 steps, of which the first three are not recorded."""
    expected = train(False, vit(), make_images(25))
    found = train(True, vit(), make_images(25))
    close(found, expected)
    assert found[2] < expected[2]  # replayed steps call nothing


def test_language_models_too():
    def model():
        torch.manual_seed(0)
        return make_language("gpt2", "relu")

    split = make_corpus_split(40)
    close(train(True, model(), split), train(False, model(), split))


def test_it_goes_on_from_a_saved_state(tmp_path):
    def saved():
        return TrainingState(tmp_path / "state.safetensors", 0.0)

    whole = train(True, vit(), make_images(25))
    with pytest.raises(KeyboardInterrupt):
        train(False, vit(), make_images(25), saved(), stop=7)
    close(train(True, vit(), make_images(25), saved()), whole)


def test_steps_that_wait_for_the_gpu_are_called_as_they_are(caplog):
    caplog.set_level(logging.INFO)
    expected = train(False, vit(), make_images(25), waits=True)
    found = train(True, vit(), make_images(25), waits=True)
    close(found, expected)
    assert "not recorded as CUDA graphs" in caplog.text


def test_the_learning_rate_of_the_last_step_is_the_schedules():
    cfg = TaskTrainingConfig.model_validate({"epochs": 5, "lr": 0.003, "batch_size": 8})
    _, history, _ = train(True, vit(), make_images(24))
    assert history[-1]["lr"] == pytest.approx(lr_at(14, 15, cfg))
