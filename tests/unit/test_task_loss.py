"""Laws of the task's loss: a model's own, the usual one of its kind, or anyone's."""

import pytest
import torch
from small_language import make_language, make_tokens
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from d2dmoe.api.batches import as_batches
from d2dmoe.api.task_loss import predictions, sample_losses, task_loss
from d2dmoe.errors import UserError

TOKENS = make_tokens(3, 6)
MASK = torch.tensor([[1] * 6, [1] * 3 + [0] * 3, [1] * 5 + [0]])
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}


def loss_of(model: nn.Module, batch, loss=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the mean of the samples' losses."""
    (given,) = as_batches([batch], model)
    outputs = given.outputs(model)
    whole = task_loss(model, outputs, given, loss)
    return whole, sample_losses(model, outputs, given, loss).mean


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_a_causal_model_without_labels_predicts_its_next_tokens(name):
    model = make_language(name)
    labels = TOKENS.masked_fill(MASK == 0, -100)
    own, samples = loss_of(model, {"input_ids": TOKENS, "attention_mask": MASK, "labels": labels})
    plain, _ = loss_of(model, {"input_ids": TOKENS, "attention_mask": MASK})
    assert torch.allclose(plain, own) and torch.allclose(samples, own)
    assert plain.requires_grad


def test_left_and_right_padding_are_left_out_alike():
    model = make_language("gemma")  # whose positions are relative
    text, pad = TOKENS[:1, :4], torch.zeros(1, 2, dtype=torch.long)
    real, none = torch.ones(1, 4, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)
    alone, _ = loss_of(model, {"input_ids": text})
    for ids, mask in (([text, pad], [real, none]), ([pad, text], [none, real])):
        batch = {"input_ids": torch.cat(ids, 1), "attention_mask": torch.cat(mask, 1)}
        assert torch.allclose(loss_of(model, batch)[0], alone, atol=1e-4)


def test_losses_of_samples_are_those_of_the_samples_alone():
    model = make_language("gpt2")
    (given,) = as_batches([{"input_ids": TOKENS, "attention_mask": MASK}], model)
    losses = sample_losses(model, given.outputs(model), given)
    assert losses.counts.tolist() == [5, 2, 4]
    for row, length in enumerate([6, 3, 5]):
        alone, _ = loss_of(model, TOKENS[row : row + 1, :length])
        assert torch.allclose(losses.sums[row] / losses.counts[row], alone, atol=1e-4)


def test_classes_and_probabilities_are_met_by_cross_entropy():
    model, inputs = nn.Linear(4, 3), torch.randn(5, 4)
    targets = torch.tensor([0, 1, 2, 1, 0])
    expected = cross_entropy(model(inputs), targets)
    assert torch.allclose(loss_of(model, (inputs, targets))[0], expected)
    shares = torch.eye(3)[targets]
    assert torch.allclose(loss_of(model, {"input": inputs, "label": shares})[0], expected)
    tokens, places = torch.randn(2, 5, 4), torch.tensor([[0, 1, 2, 1, -100], [2, 1, 0, 0, 0]])
    expected = cross_entropy(model(tokens).flatten(0, 1), places.flatten())
    assert all(torch.allclose(loss, expected) for loss in loss_of(model, (tokens, places)))


def test_a_seq2seq_models_labels_are_not_shifted():
    model = T5ForConditionalGeneration(
        T5Config(
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            vocab_size=50,
            decoder_start_token_id=0,
        )
    ).eval()
    labels = TOKENS.masked_fill(MASK == 0, -100)
    (given,) = as_batches([{"input_ids": TOKENS, "labels": labels}], model)
    losses = sample_losses(model, given.outputs(model), given)
    assert losses.counts.tolist() == [6, 3, 5]
    assert torch.allclose(losses.mean, given.outputs(model).loss)


def test_a_loss_that_cross_entropy_does_not_repeat_counts_as_one():
    model = make_language("bert")
    model.config.problem_type = "regression"
    model.num_labels = model.config.num_labels
    batch = {"input_ids": TOKENS, "labels": torch.randn(3, model.config.num_labels)}
    (given,) = as_batches([batch], model)
    outputs = given.outputs(model)
    losses = sample_losses(model, outputs, given)
    assert losses.counts.tolist() == [3] and torch.allclose(losses.mean, outputs.loss)
    assert predictions(model, outputs, given) is None


def test_any_function_of_outputs_and_batch_is_a_loss():
    model, inputs = nn.Linear(4, 3), torch.randn(5, 4)
    each = model(inputs).square().mean(1)
    for loss in (lambda out, _: out.square().mean(1), lambda out, _: out.square().mean()):
        whole, samples = loss_of(model, inputs, loss)
        assert torch.allclose(whole, each.mean()) and torch.allclose(samples, each.mean())


@pytest.mark.parametrize(
    "loss", [lambda out, _: out, lambda *_: 1.0, lambda *_: None, lambda out, _: out.argmax()]
)
def test_what_is_no_loss_is_refused(loss):
    with pytest.raises(UserError, match="scalar"):
        loss_of(nn.Linear(4, 3), torch.randn(5, 4), loss)


@pytest.mark.parametrize(
    ("make", "batch", "hint"),
    [
        (lambda: nn.Linear(4, 3), torch.randn(5, 4), "targets"),
        (lambda: nn.Linear(4, 3), (torch.randn(2, 4), torch.tensor([0, 3])), "3 classes"),
        (lambda: nn.Linear(4, 3), (torch.randn(2, 4), torch.randn(2, 3)), "loss="),
        (lambda: nn.Linear(4, 3), (torch.randn(2, 4), torch.randn(2)), "loss="),
        (lambda: make_language("bert"), TOKENS, "labels"),
        (lambda: make_language("bert").bert, TOKENS, "logits"),
        (lambda: BertForMaskedLM(BertConfig(**SIZES, intermediate_size=32)), TOKENS, "mask"),
    ],
)
def test_where_nothing_can_be_compared_the_message_says_what_to_give(make, batch, hint):
    with pytest.raises(UserError, match=hint):
        loss_of(make(), batch)


@pytest.mark.parametrize("full", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_full_memory_is_no_fault_of_a_batch_or_of_a_loss(full):
    """What it is called, the caller says, who knows what may be lowered."""

    def fail(*_):
        raise full

    class Full(nn.Linear):
        forward = fail

    (batch,) = as_batches([torch.ones(2, 3)], nn.Linear(3, 2))
    with pytest.raises(type(full)):
        batch.outputs(Full(3, 2))
    with pytest.raises(type(full)):
        sample_losses(nn.Linear(3, 2), batch, torch.ones(2, 2), fail)
