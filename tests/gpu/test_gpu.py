"""The stages on a CUDA device: same laws as on the CPU, in bf16 where training uses it."""

from pathlib import Path

import pytest
import torch

from d2dmoe.checkpoint import save_model
from d2dmoe.config.model import ModelConfig
from d2dmoe.config.stages import RouterConfig, SparsifyConfig, SplitConfig
from d2dmoe.config.training import TrainingConfig
from d2dmoe.data.splits import ImageSplit
from d2dmoe.device import claim_device
from d2dmoe.run import Run
from d2dmoe.stages import dense, routers, sparsify
from d2dmoe.stages.evaluate import evaluate
from d2dmoe.stages.split import split

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MODEL = ModelConfig(patch_size=7, layers=2, d_model=32, heads=2, d_ff=64)
OPTIONS = {"epochs": 2, "lr": 0.003, "batch_size": 32}


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(seed=0, device=claim_device(tmp_path / "locks", wants_gpu=True))


@pytest.fixture(autouse=True)
def images(monkeypatch):
    """Random images of four classes that differ in brightness, in place of prepared files."""
    labels = torch.arange(256) % 4
    noise = torch.randint(0, 60, (256, 3, 28, 28), generator=torch.Generator().manual_seed(0))
    pixels = (noise + 60 * labels[:, None, None, None]).to(torch.uint8)
    made = ImageSplit(labels, list("abcd"), [0.5] * 3, [0.3] * 3, lambda i: pixels[i])
    for module in (dense, sparsify, routers):
        monkeypatch.setattr(module, "open_split", lambda _folder, _name: made)
    monkeypatch.setattr("d2dmoe.stages.evaluate.open_split", lambda _folder, _name: made)


def test_the_whole_conversion_runs_and_learns_on_the_gpu(run, tmp_path):
    data, path = Path("unused"), tmp_path / "model.safetensors"
    assert run.device.type == "cuda"
    model, spec, history = dense.train_dense(MODEL, TrainingConfig(**OPTIONS), data, run)
    assert next(model.parameters()).is_cuda
    assert history[-1]["loss"] < history[0]["loss"]
    save_model(path, model, spec)

    cfg = SparsifyConfig(mode="relu_hoyer", alpha=0.01, **OPTIONS)
    model, spec, history = sparsify.sparsify(path, cfg, data, run)
    assert history[-1]["sparsity"] < history[0]["sparsity"]
    save_model(path, model, spec)

    inputs = torch.randn(8, 3, 28, 28, device=run.device)
    with torch.no_grad():
        before = model(inputs)
    model, spec = split(path, SplitConfig(expert_size=8), seed=0)
    with torch.no_grad():
        torch.testing.assert_close(model.to(run.device)(inputs), before, rtol=1e-3, atol=1e-3)
    save_model(path, model, spec)

    cfg = RouterConfig(width=8, **OPTIONS)
    model, spec, history = routers.train_routers(path, cfg, data, run)
    assert history[-1]["loss"] < history[0]["loss"]
    save_model(path, model, spec)

    points, _ = evaluate(path, "dynamic_k", [0.0, 0.5, 1.0], data, "test", 64, run)
    flops = [point["flops"] for point in points]
    assert flops == sorted(flops, reverse=True)
    assert points[0]["accuracy"] > 0.9
