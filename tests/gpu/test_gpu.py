"""The stages on a CUDA device: same laws as on the CPU, in bf16 where training uses it."""

import pytest
import torch

from d2dmoe.checkpoint import save_model
from d2dmoe.config.model import BertConfig, GemmaConfig, GPT2Config, ViTConfig
from d2dmoe.config.stages import ClusteringConfig, DenseConfig, RouterConfig, SparsifyConfig
from d2dmoe.data.splits import CorpusSplit, ImageSplit, Split, TextSplit
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.device import claim_device
from d2dmoe.jobs.run import Run
from d2dmoe.quality import batches_of
from d2dmoe.stages import dense, evaluate, fitting
from d2dmoe.stages.clustering import cluster
from d2dmoe.stages.router import train_routers
from d2dmoe.stages.sparsify import sparsify

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = {"layers": 2, "d_model": 32, "heads": 2, "d_ff": 64}
READING = SIZES | {"positions": 16}
MODELS = {
    "vit": ViTConfig(architecture="vit", patch_size=7, **SIZES),
    "bert": BertConfig(architecture="bert", **READING),
    "gpt2": GPT2Config(architecture="gpt2", **READING),
    "gemma": GemmaConfig(architecture="gemma", **READING, head_dim=16, key_value_heads=1),
}
OPTIONS = {"epochs": 6, "lr": 0.003, "batch_size": 32}
WORDS = 20


def images() -> ImageSplit:
    """Random images of four classes that differ in brightness."""
    labels, classes = torch.arange(256) % 4, list("abcd")
    noise = torch.randint(0, 60, (256, 3, 28, 28), generator=torch.Generator().manual_seed(0))
    pixels = (noise + 60 * labels[:, None, None, None]).to(torch.uint8)
    about = {"image_size": 28, "classes": classes}
    return ImageSplit(labels, classes, [0.5] * 3, [0.3] * 3, pixels.__getitem__, about)


def texts() -> TextSplit:
    """Texts of several lengths, of words that only their class has."""
    generator = torch.Generator().manual_seed(0)
    labels, lengths = torch.arange(256) % 4, torch.randint(3, 17, (256,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    words = torch.randint(4, (int(offsets[-1]),), generator=generator)
    tokens = 1 + words + 4 * labels.repeat_interleave(lengths)
    about = {"length": 16, "vocab_size": WORDS, "pad_id": 0, "classes": list("abcd")}
    return TextSplit(tokens.int(), offsets, labels, about)


def corpus() -> CorpusSplit:
    """Blocks in which every token is the one after its predecessor."""
    tokens = (torch.arange(256)[:, None] + torch.arange(17)) % WORDS
    return CorpusSplit(tokens.int(), {"length": 16, "vocab_size": WORDS, "end_of_text_id": 0})


SAMPLES = {"vit": images, "bert": texts, "gpt2": corpus, "gemma": corpus}


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(seed=0, device=claim_device(tmp_path / "locks", wants_gpu=True))


@pytest.fixture(params=MODELS)
def architecture(request) -> str:
    return request.param


@pytest.fixture
def samples(architecture, monkeypatch) -> Split:
    """Samples that the stages read in place of prepared files."""
    made = SAMPLES[architecture]()
    for module in (dense, fitting, evaluate):
        monkeypatch.setattr(module, "open_split", lambda _folder, _name: made)
    return made


def test_the_whole_conversion_runs_and_learns_on_the_gpu(architecture, samples, run, tmp_path):
    path = tmp_path / "model.safetensors"
    assert run.device.type == "cuda"
    cfg = DenseConfig(model=MODELS[architecture], **OPTIONS)
    model, spec, history = dense.train_dense(None, cfg, run)
    assert next(model.parameters()).is_cuda
    assert history[-1]["loss"] < history[0]["loss"]
    save_model(path, model, spec)

    cfg = SparsifyConfig(mode="relu_hoyer", alpha=0.01, **OPTIONS)
    model, spec, history = sparsify(path, cfg, run)
    assert history[-1]["sparsity"] < history[0]["sparsity"]
    save_model(path, model, spec)

    inputs, _ = next(batches_of(samples, 8, run.device))
    with torch.no_grad():
        before = logits_of(model, inputs)
    model, spec, _ = cluster(path, ClusteringConfig(expert_size=8), run)
    with torch.no_grad():
        after = logits_of(model.to(run.device), inputs)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    save_model(path, model, spec)

    cfg = RouterConfig(width=8, **OPTIONS)
    model, spec, history = train_routers(path, cfg, run)
    assert history[-1]["loss"] < history[0]["loss"]
    save_model(path, model, spec)

    about = {"values": [0.0, 0.5, 1.0], "split": "test", "batch_size": 64}
    points, _ = evaluate.evaluate(path, "dynamic_k", about, run)
    flops = [point["flops"] for point in points]
    assert flops == sorted(flops, reverse=True)
    assert points[0]["accuracy"] > 0.9
