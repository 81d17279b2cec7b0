"""Batches of any form become the same calls of a model; what is none is refused in one sentence."""

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from small_language import make_language, make_tokens
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from d2dmoe.api.batches import as_batches
from d2dmoe.errors import DataError

TOKENS, LABELS = make_tokens(4, 6), torch.tensor([0, 1, 2, 0])
RAGGED = [[5, 6, 7], [8], [9, 10]]


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    return make_language("bert")


@pytest.fixture
def linear() -> nn.Module:
    return nn.Linear(3, 2)


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": TOKENS, "labels": LABELS},
        {"input_ids": TOKENS, "label": LABELS},
        {"input_ids": TOKENS.tolist(), "targets": LABELS.tolist()},
        {"input_ids": TOKENS.numpy(), "label_ids": LABELS.numpy()},
        BatchEncoding({"input_ids": TOKENS, "labels": LABELS, "length": [6] * 4}),
        (TOKENS, LABELS),
        [TOKENS, LABELS],
        ({"input_ids": TOKENS}, LABELS),
        next(iter(DataLoader(TensorDataset(TOKENS, LABELS), batch_size=4))),
    ],
)
def test_every_form_of_a_batch_is_the_same_call(bert, batch):
    (given,) = as_batches([batch], bert)
    assert torch.equal(given.targets, LABELS) and len(given) == 4
    assert torch.equal(given.outputs(bert).logits, bert(input_ids=TOKENS).logits)
    assert torch.equal(given.outputs(bert).loss, bert(input_ids=TOKENS, labels=LABELS).loss)


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_rows_of_a_dataset_are_padded_batched_and_lose_other_columns(bert, form):
    data = Dataset.from_dict({"input_ids": RAGGED, "label": [0, 1, 2], "text": ["a", "b", "c"]})
    first, second = as_batches(data.with_format(form), bert, batch_size=2)
    assert first.kwargs["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert first.kwargs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert first.real_tokens.of("", (2, 3)).tolist() == [[True] * 3, [True, False, False]]
    assert second.kwargs["input_ids"].tolist() == [[9, 10]]
    assert second.real_tokens.of("", (1, 2)) is None
    alone = bert(input_ids=torch.tensor([[8]])).logits
    assert torch.allclose(first.outputs(bert).logits[1:], alone, atol=1e-5)


def test_streams_of_datasets_and_ragged_labels():
    model, data = make_language("gpt2"), Dataset.from_dict({"input_ids": RAGGED, "labels": RAGGED})
    (given,) = as_batches(data.to_iterable_dataset(), model)
    assert given.kwargs["labels"].tolist() == [[5, 6, 7], [8, -100, -100], [9, 10, -100]]


def test_inputs_get_the_models_dtype_and_targets_keep_theirs(linear):
    model = linear.bfloat16()
    inputs, targets = np.ones((2, 3)), torch.ones(2, 2)
    (given,) = as_batches([(inputs, targets)], model)
    assert given.args[0].dtype == torch.bfloat16 and given.targets.dtype == torch.float32
    assert given.outputs(model).shape == (2, 2)


def test_a_model_of_ones_own_takes_tensors_pairs_and_several_arguments(linear):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = linear

        def forward(self, first, second):
            return self.map(first + second)

    model, ones = Sum(), torch.ones(2, 3)
    expected = linear(2 * ones)
    forms = [((ones, ones), LABELS[:2]), {"first": ones, "second": ones, "labels": LABELS[:2]}]
    for given in as_batches(forms, model):
        assert torch.equal(given.outputs(model), expected)
        assert torch.equal(given.targets, LABELS[:2]) and "labels" not in given.kwargs
    (given,) = as_batches([ones], linear)
    assert torch.equal(given.outputs(linear), linear(ones)) and given.targets is None


def test_wrappers_of_a_model_take_what_it_takes(bert):
    (given,) = as_batches([TOKENS], nn.DataParallel(bert))
    assert torch.equal(given.kwargs["input_ids"], TOKENS)


REFUSED = [
    ([], "empty"),
    ((x for x in []), "empty"),
    (3, "iterable"),
    (None, "iterable"),
    ("abc", "iterable"),
    ({"input_ids": TOKENS}, "list"),
    (TOKENS, "list"),
    ((TOKENS, LABELS), "list"),
    (TensorDataset(TOKENS), "DataLoader"),
    (DatasetDict(train=Dataset.from_dict({"input_ids": RAGGED})), "train"),
    (Dataset.from_dict({"text": ["a"], "label": [0]}), "okenise"),
    ([{"input_idss": TOKENS}], "'input_ids'"),
    ([{"labels": LABELS}], "input_ids"),
    ([{}], "input_ids"),
    (["a text"], "tokenise"),
    ([["a", "b"]], "tokenise"),
    ([{"input_ids": ["a", "b"]}], "okenise"),
    ([{"input_ids": [[1, None]]}], "without a value"),
    ([{"input_ids": TOKENS, "labels": [0, None, 1, 2]}], "without a value"),
    ([[{"input_ids": RAGGED[0]}, {"input_ids": RAGGED[1]}]], "collate"),
    ([(TOKENS, TOKENS, LABELS)], "dict"),
    ([(TOKENS, LABELS[:2])], "2 targets"),
    ([TOKENS[:0]], "no samples"),
    ([TOKENS[0]], "dimension"),
    ([5.0], "float"),
    ([{"input_ids": [torch.ones(2, 3), torch.ones(3, 3)]}], "shape"),
]


def failing():
    yield TOKENS
    raise FileNotFoundError("photo.png")


REFUSED += [
    (failing(), "batch 2 cannot be read.*FileNotFoundError: photo.png"),
    (map(int, "x"), "batch 1 cannot be read.*ValueError"),
    ([{"input_ids": TOKENS, "attention_mask": torch.ones(4, 5)}], r"\(4, 5\) beside input_ids"),
    ([{"input_ids": TOKENS, "attention_mask": torch.zeros(4, 6)}], "padding"),
]


@pytest.mark.parametrize(("batches", "hint"), REFUSED)
def test_what_is_no_batch_is_refused_with_the_remedy(bert, batches, hint):
    with pytest.raises(DataError, match=hint):
        list(as_batches(batches, bert))


def test_texts_of_several_lengths_need_a_mask(linear):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 3)

        def forward(self, input_ids):
            return self.embedding(input_ids).mean(1)

    with pytest.raises(DataError, match="attention_mask"):
        list(as_batches([{"input_ids": RAGGED}], Bag()))


def test_a_generator_is_read_once_and_refused_where_it_is_needed_again(bert):
    batches = as_batches((TOKENS for _ in range(2)), bert)
    assert batches.first().kwargs.keys() == {"input_ids"}
    assert len(list(batches)) == 2
    with pytest.raises(DataError, match="list"):
        list(batches)
    with pytest.raises(DataError, match="list"):
        as_batches(iter([TOKENS]), bert, again=True)
    again = as_batches([TOKENS], bert, again=True)
    assert len(list(again)) == len(list(again)) == 1


def test_the_first_batch_of_a_shuffling_loader_draws_no_random_numbers(bert):
    loader = DataLoader(TOKENS, batch_size=2, shuffle=True)
    state = torch.get_rng_state()
    as_batches(loader, bert).first()
    assert torch.equal(torch.get_rng_state(), state)
