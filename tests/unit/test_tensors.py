"""Laws of tied tensors: saved once, tied again when loaded, nothing missing and nothing unknown."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from d2dmoe.errors import CheckpointError
from d2dmoe.io.tensors import (
    FORMATS,
    distinct,
    extra_memory,
    load_distinct,
    load_published,
    load_tensors,
    save_tensors,
)


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


def samples() -> dict[str, torch.Tensor]:
    """Of every number format and awkward shape."""
    numbers = torch.arange(-6, 6).reshape(3, 4)
    found = {str(dtype): numbers.to(dtype) for dtype in FORMATS}
    found |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 3), "turned": numbers.T}
    return found | {"trained": torch.ones(2, requires_grad=True), "näme": numbers[:, 1]}


def test_the_library_reads_what_is_written(tmp_path):
    save_tensors(tmp_path / "file", samples(), {"spec": "ä"})
    theirs, (ours, metadata) = load_file(tmp_path / "file"), load_tensors(tmp_path / "file", "")
    assert theirs.keys() == ours.keys() == samples().keys() and metadata["spec"] == "ä"
    for name, tensor in samples().items():
        for found in (theirs[name], ours[name]):
            assert found.dtype == tensor.dtype and found.shape == tensor.shape
            assert found.tolist() == tensor.tolist()


def test_the_same_tensors_give_the_same_bytes_in_any_order(tmp_path):
    save_tensors(tmp_path / "one", samples())
    save_tensors(tmp_path / "other", dict(reversed(samples().items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_what_is_copied_in_pieces_has_the_bytes_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("d2dmoe.io.tensors.PIECE", 100)
    views = {
        "turned": torch.arange(300.0).view(20, 15).T,
        "windows": torch.arange(90).as_strided((9, 10), (9, 1)),
        "row": torch.zeros(2, 50).T,
        "empty": torch.zeros(0, 3).T,
        "scalar": torch.tensor(3.0),
    }
    save_tensors(tmp_path / "views", views)
    save_tensors(tmp_path / "copies", {name: x.contiguous() for name, x in views.items()})
    assert (tmp_path / "views").read_bytes() == (tmp_path / "copies").read_bytes()
    assert extra_memory(views) <= 100


def test_every_flip_of_a_bit_is_named(tmp_path):
    """In the header's length, the header, its padding, the digest and the tensors alike."""
    path = tmp_path / "file"
    save_tensors(path, {"a": torch.ones(3), "b": torch.arange(2)}, {"spec": "{}"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="file is damaged or truncated .* Do this."):
            load_tensors(path, "Do this.")
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="file is damaged"):
        load_tensors(path, "Do this.")


def test_a_file_of_others_has_no_digest_and_is_read_as_such_alone(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "file", {"format": "pt"})
    with pytest.raises(CheckpointError, match="its header has no SHA-256.*Do this."):
        load_tensors(tmp_path / "file", "Do this.")
    assert load_published(tmp_path / "file", "")["a"].tolist() == [1.0] * 3


PEAK = """
import resource, sys, torch
from pathlib import Path
from d2dmoe.io.tensors import extra_memory, save_tensors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

tensors = {str(i): torch.ones(1024, 2048).T for i in range(12)}  # 8 MiB each, to be copied
save_tensors(Path(sys.argv[1]), {"warm": torch.ones(1024, 64).T})
before = peak()
save_tensors(Path(sys.argv[1]), tensors)
print(peak() - before, extra_memory(tensors))
"""


@pytest.mark.workflow
def test_saving_needs_memory_for_one_tensor_alone(tmp_path):
    command = [sys.executable, "-c", PEAK, str(tmp_path / "file")]
    freed = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # at once, by the C library
    done = subprocess.run(command, env=freed, capture_output=True, text=True, check=True)
    more, told = map(int, done.stdout.split())
    assert told == 8 << 20 and more < 2 * told  # of 96 MiB
