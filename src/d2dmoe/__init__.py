"""D2DMoE: dense Transformers converted to dynamic-k mixtures of experts (arXiv 2310.04361).

Names are imported when they are used: importing the package imports no torch.
"""

from typing import TYPE_CHECKING, Any

from d2dmoe.lookup import resolve
from d2dmoe.registration import register

if TYPE_CHECKING:
    from d2dmoe.api.backends import choose_backends as choose_backends
    from d2dmoe.api.backends import explain_backends as explain_backends
    from d2dmoe.api.calibrate import calibrate as calibrate
    from d2dmoe.api.convert import convert as convert
    from d2dmoe.api.evaluate import evaluate as evaluate
    from d2dmoe.api.inspect import inspect as inspect
    from d2dmoe.api.losses import RouterLoss as RouterLoss
    from d2dmoe.api.losses import SparsityPenalty as SparsityPenalty
    from d2dmoe.api.pretrained import from_pretrained as from_pretrained
    from d2dmoe.api.pretrained import push_to_hub as push_to_hub
    from d2dmoe.api.pretrained import save_pretrained as save_pretrained
    from d2dmoe.api.projections import imitate_projections as imitate_projections
    from d2dmoe.api.routers import train_routers as train_routers
    from d2dmoe.api.sensitivity import measure_sensitivity as measure_sensitivity
    from d2dmoe.api.sparsify import sparsify as sparsify
    from d2dmoe.compression.quantize import quantize_experts as quantize_experts
    from d2dmoe.conversion import add_routers as add_routers
    from d2dmoe.moe import operating_point as operating_point
    from d2dmoe.moe import set_operating_point as set_operating_point
    from d2dmoe.offloading.offload import offload as offload

__version__ = "0.1.0"

PUBLIC = {  # names and the code that they stand for
    "inspect": "d2dmoe.api.inspect:inspect",
    "convert": "d2dmoe.api.convert:convert",
    "sparsify": "d2dmoe.api.sparsify:sparsify",
    "imitate_projections": "d2dmoe.api.projections:imitate_projections",
    "train_routers": "d2dmoe.api.routers:train_routers",
    "add_routers": "d2dmoe.conversion:add_routers",
    "measure_sensitivity": "d2dmoe.api.sensitivity:measure_sensitivity",
    "calibrate": "d2dmoe.api.calibrate:calibrate",
    "evaluate": "d2dmoe.api.evaluate:evaluate",
    "set_operating_point": "d2dmoe.moe:set_operating_point",
    "operating_point": "d2dmoe.moe:operating_point",
    "offload": "d2dmoe.offloading.offload:offload",
    "choose_backends": "d2dmoe.api.backends:choose_backends",
    "explain_backends": "d2dmoe.api.backends:explain_backends",
    "quantize_experts": "d2dmoe.compression.quantize:quantize_experts",
    "save_pretrained": "d2dmoe.api.pretrained:save_pretrained",
    "from_pretrained": "d2dmoe.api.pretrained:from_pretrained",
    "push_to_hub": "d2dmoe.api.pretrained:push_to_hub",
    "SparsityPenalty": "d2dmoe.api.losses:SparsityPenalty",
    "RouterLoss": "d2dmoe.api.losses:RouterLoss",
}

__all__ = ["__version__", *PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'd2dmoe' has no attribute {name!r}")
    return resolve(PUBLIC[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})


register()  # last: transformers may be imported already, and then reads the version
