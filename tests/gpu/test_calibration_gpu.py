"""Calibrating on a CUDA device: the launch is tuned once and kept, the faster backend chosen."""

import pytest
import torch
from torch import nn

from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE, set_selection, split_ffn
from d2dmoe.router import Router

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Model(nn.Module):
    def __init__(self, moe: MoE):
        super().__init__()
        self.moe = moe

    def forward(self, x):
        return self.moe(x)


@pytest.fixture
def model(monkeypatch, tmp_path) -> Model:
    """One layer in bf16, whose launches are kept in a folder of the test."""
    from d2dmoe.kernels import launch

    monkeypatch.setenv("D2DMOE_CACHE", str(tmp_path))
    for cached in (launch._table, launch._fastest):
        cached.cache_clear()
    ffn = FFN(nn.Linear(256, 1024), nn.Linear(1024, 256), "relu")
    moe = split_ffn(ffn, torch.arange(1024).view(8, 128))
    moe.router = Router(256, 64, 8, "regression")
    yield Model(moe).cuda().bfloat16().eval()
    for cached in (launch._table, launch._fastest):
        cached.cache_clear()


def test_a_layer_is_tuned_once_and_takes_the_faster_backend(model, tmp_path):
    from d2dmoe.kernels import launch
    from d2dmoe.kernels.calibration import calibrate, explain

    x = torch.randn(4096, 256, device="cuda", dtype=torch.bfloat16)
    set_selection(model, "dynamic_k", 0.9)
    (choice,) = calibrate(model, {"x": x}).values()
    fastest = {"dense": choice.dense_ms, "dynamic_k": choice.dynamic_k_ms}
    assert choice.backend == min(fastest, key=fastest.get)
    assert choice.backend in explain(model)["moe"]
    (line,) = launch.read_table(tmp_path / "launches.json")
    assert (line["tokens"], line["num_experts"]) == (4096, 8)
    calibrate(model, {"x": x})
    assert launch.read_table(tmp_path / "launches.json") == [line]  # not timed again
    with torch.inference_mode():
        found, exact = model.moe.run(x, "dynamic_k"), model.moe.run(x, "dense")
    # An expert on the threshold may fall on either side, for a few tokens.
    wrong = (found - exact).float().norm(dim=1) > 0.02 * exact.float().norm(dim=1)
    assert wrong.float().mean() < 0.05
