"""Timing on a CUDA device: in CUDA graphs, which not everything can be captured in."""

import pytest
import torch

from d2dmoe.errors import UserError
from d2dmoe.timing import compare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


def test_replays_take_less_time_than_many_small_launches(device):
    x = torch.randn(16, device=device)

    def many() -> None:
        for _ in range(100):
            x + 1

    eager = compare({"many": many}, device, 0.02)["many"]
    graph = compare({"many": many}, device, 0.02, graph=True)["many"]
    assert 0 < graph.median_ms < eager.median_ms


def test_what_cannot_be_captured_is_named(device):
    x = torch.randn(16, device=device)
    with pytest.raises(UserError, match="waits cannot be captured"):
        compare({"waits": lambda: x.sum().item()}, device, 0.02, graph=True)
