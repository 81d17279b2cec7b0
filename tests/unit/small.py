"""Small models and data that the unit tests share."""

from collections.abc import Collection, Iterable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from d2dmoe.config.model import ViTConfig
from d2dmoe.conversion import add_routers, to_moe
from d2dmoe.data.splits import ImageSplit, Split
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.models.build import create_model
from d2dmoe.selection_rules import RULES
from d2dmoe.spec import ModelSpec, build
from d2dmoe.surgery import find

torch.set_num_threads(1)  # the order of sums, and so their last bits, depends on it

SIZE, CLASSES = 8, ["a", "b", "c"]
MEAN, STD = [0.5, 0.4, 0.6], [0.25, 0.2, 0.3]
MODEL = ViTConfig(architecture="vit", patch_size=4, layers=2, d_model=16, heads=2, d_ff=32)
ABOUT = {"image_size": SIZE, "classes": CLASSES, "mean": MEAN, "std": STD}
OPTIONS, _ = create_model(MODEL, ABOUT)
SPEC = ModelSpec(architecture="vit", options=OPTIONS, data=ABOUT)
EXPERTS = 8


def values_of(rule: str) -> list[float]:
    """Operating points of a selection rule, from little to all that it can run."""
    return [1, 3, EXPERTS] if RULES[rule].whole else [0.0, 0.3, 1.0]


def with_options(**changes) -> ModelSpec:
    """The spec of a dense model with other options."""
    return SPEC.model_copy(update={"options": OPTIONS | changes})


def with_experts(spec: ModelSpec, ffn: int = EXPERTS, **projections: int) -> ModelSpec:
    """The spec of a model that was split into so many experts a layer, by the layers' role."""
    return spec.with_part("clustering", num_experts={"ffn": ffn, **projections})


def with_routers(
    spec: ModelSpec, kind: str = "regression", width: int = 6, projection_width: int | None = None
) -> ModelSpec:
    """The spec of a model whose experts got routers; the defaults are those of `make_routed`."""
    return spec.with_part("router", kind=kind, width=width, projection_width=projection_width)


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """Draw every parameter anew: a fresh ViT's head is zero, which makes all its outputs equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, scale, generator=generator)
    return module.eval()


def make_ffn(
    d_model: int,
    d_ff: int,
    activation: str,
    seed: int = 0,
    gated: bool = False,
    bias: bool = True,
) -> FFN:
    up, down = nn.Linear(d_model, d_ff, bias), nn.Linear(d_ff, d_model, bias)
    gate = nn.Linear(d_model, d_ff, bias) if gated else None
    return randomise(FFN(up, down, activation, gate), seed, scale=0.5)


def make_dense(spec: ModelSpec = SPEC, seed: int = 0) -> nn.Module:
    """A model with logits around 0, so that it tells `make_images` apart."""
    model, images = randomise(build(spec), seed), make_images(64)
    with torch.no_grad():
        inputs, _ = images.batch(images.read(torch.arange(64)), torch.device("cpu"))
        model.heads.head.bias -= model(**inputs).mean(0)
    return model


def make_split(spec: ModelSpec = SPEC, seed: int = 0, num_experts: int = EXPERTS) -> nn.Module:
    model = make_dense(spec, seed)
    ups = [ffn.activated.weight for ffn in find(model, FFN).values()]
    return to_moe(model, [clusters(up, num_experts, seed) for up in ups])


KNOWN: dict[tuple, torch.Tensor] = {}


def clusters(rows: torch.Tensor, num_experts: int, seed: int = 0) -> torch.Tensor:
    """`assign_neurons` by k-means; the same rows are clustered once."""
    key = rows.detach().float().numpy().tobytes(), rows.shape, num_experts, seed
    if key not in KNOWN:
        KNOWN[key] = assign_neurons(rows, num_experts, "kmeans", seed)
    return KNOWN[key].clone()


def make_routed(spec: ModelSpec = SPEC, seed: int = 0, kind: str = "regression") -> nn.Module:
    torch.manual_seed(seed)
    return add_routers(make_split(spec, seed), kind, width=6).eval()


def make_images(count: int, seed: int = 0) -> ImageSplit:
    """Random labels, and patches of one random colour, which sets images more apart than noise."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (count, 3, 2, 2), dtype=torch.uint8, generator=generator)
    images = colours.repeat_interleave(SIZE // 2, 2).repeat_interleave(SIZE // 2, 3)
    labels = torch.randint(len(CLASSES), (count,), generator=generator)
    return ImageSplit(labels, CLASSES, MEAN, STD, images.__getitem__)


def make_inputs(count: int = 5, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


READERS = [  # the modules of stages and evaluations that open data
    "methods.avit.evaluation",
    "methods.early_exits.evaluation",
    "methods.factorllm.evaluation",
    "methods.sam.evaluation",
    "methods.seer.evaluation",
    "methods.thresholds.evaluation",
    "stages.activity",
    "stages.calibrate",
    "stages.dense",
    "stages.distill",
    "stages.drawn",
    "stages.evaluate",
    "stages.fitting",
    "stages.token_load",
]


def read_from(samples: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every stage and evaluation read these samples in place of prepared files."""
    for name in READERS:
        module = import_module(f"d2dmoe.{name}")
        monkeypatch.setattr(module, "open_split", lambda _folder, _name: samples)


def others_later(values: Iterable[Any], first: Collection[Any]) -> list:
    """Parameters of which the fast tests take the first; the others go with the workflow's."""
    marks = pytest.mark.workflow
    return [value if value in first else pytest.param(value, marks=marks) for value in values]
