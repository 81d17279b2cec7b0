"""Laws of tied tensors: saved once, tied again when loaded, nothing missing and nothing unknown."""

import pytest
import torch
from torch import nn

from d2dmoe.io.tensors import distinct, load_distinct, load_tensors, save_tensors


class Tied(nn.Module):
    """An embedding that is its own head, and maps of one shape that are not shared."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight = self.embedding.weight


def test_each_tensor_is_kept_once_under_its_first_name():
    kept = distinct(Tied().state_dict())
    assert list(kept) == ["embedding.weight"] + [
        f"{layer}.{name}" for layer in ("first", "second") for name in ("weight", "bias")
    ]


def test_equal_tensors_views_of_other_shapes_and_empty_ones_are_not_tied():
    one = torch.ones(2, 3)
    tensors = {"one": one, "equal": one.clone(), "view": one.flatten(), "tail": one[1]}
    tensors |= {"empty": torch.empty(0), "other": torch.empty(0)}
    assert distinct(tensors).keys() == tensors.keys()


def test_a_file_holds_a_tied_tensor_once_and_loads_tied(tmp_path):
    model, loaded = Tied(), Tied(seed=1)
    save_tensors(tmp_path / "model", distinct(model.state_dict()))
    tensors, _ = load_tensors(tmp_path / "model", "")
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in model.parameters())
    load_distinct(loaded, tensors)
    assert loaded.head.weight is loaded.embedding.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("first.bias"),
            r"1 tensors are missing or unknown, first \['first.bias'\]",
        ),
        (lambda t: t.update(third=t["first.bias"]), r"1 tensors .* first \['third'\]"),
        (lambda t: t.update({"head.weight": t["embedding.weight"]}), r"first \['head.weight'\]"),
        (lambda t: t.update({"first.bias": torch.ones(3)}), "size mismatch for first.bias"),
    ],
    ids=["missing", "unknown", "tied twice", "of another shape"],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    tensors = dict(distinct(Tied().state_dict()))
    change(tensors)
    with pytest.raises(RuntimeError, match=message):
        load_distinct(Tied(), tensors)


def test_what_was_saved_tied_does_not_fit_an_untied_model():
    untied = Tied()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    with pytest.raises(RuntimeError, match="head.weight"):
        load_distinct(untied, distinct(Tied().state_dict()))
