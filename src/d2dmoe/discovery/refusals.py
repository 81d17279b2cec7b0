"""Models that cannot be traced or converted at all, refused in plain words."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.conv import _ConvNd

from d2dmoe.errors import ModelError
from d2dmoe.moe import MoE
from d2dmoe.surgery import check_module


def check(model: nn.Module) -> None:
    """
    Raises:
        ModelError: the model is wrapped, compiled or scripted, has weights on the meta device, is a
            mixture of experts already, or no module.
    """
    name = type(model).__name__
    check_module(model)
    for part, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ModelError(
                f"{part or 'the model'} is compiled: convert the original, then compile that"
            )
    if hasattr(model, "module") and name in ("DataParallel", "DistributedDataParallel"):
        raise ModelError(f"the model is wrapped in {name}: convert its .module, then wrap it")
    scripted = next((n for n, m in model.named_modules() if isinstance(m, ScriptModule)), None)
    if scripted is not None:
        raise ModelError(
            f"{scripted or 'the model'} is TorchScript, whose modules cannot be replaced: convert "
            "the original"
        )
    check_loaded(model)
    mixture = next(mixtures(model), None)
    if mixture is not None:
        raise ModelError(
            f"{name} is a mixture of experts already ({mixture} holds experts and a router): only "
            "dense models can be converted"
        )


def check_loaded(model: nn.Module) -> None:
    """
    Raises:
        ModelError: weights are on the meta device or offloaded.
    """
    meta = next((key for key, p in model.named_parameters() if p.is_meta), None)
    if meta is not None:
        raise ModelError(
            f"the weights of {type(model).__name__} ({meta} and others) are on the meta device or "
            "offloaded: load them into memory first"
        )


def mixtures(model: nn.Module) -> Iterator[str]:
    """Modules, by name, that hold experts of their own, in lists or in 3-D parameters, beside a
    router: a matrix with a row for each expert. This package's layers are none."""
    ours = [name for name, module in model.named_modules() if isinstance(module, MoE)]
    for name, module in model.named_modules():
        if any(f"{name}.".startswith(f"{layer}.") for layer in ours):
            continue
        experts = _stacked(module) or _listed(module)
        if experts is not None and _has_router(model, name, module, *experts):
            yield name


def _stacked(module: nn.Module) -> tuple[int, set[int]] | None:
    """Number of experts and their widths, where they lie in one parameter [n, a, b]."""
    if isinstance(module, _ConvNd):
        return None
    shapes = [p.shape for p in module.parameters(recurse=False) if p.ndim == 3 and min(p.shape) > 1]
    return (shapes[0][0], set(shapes[0][1:])) if shapes else None


def _listed(module: nn.Module) -> tuple[int, set[int]] | None:
    """The same, where the children are alike, each nothing but two or three linear maps."""
    children = [c for c in module.children() if next(c.parameters(), None) is not None]
    if not isinstance(module, nn.ModuleList | nn.ModuleDict) or len(children) < 2:
        return None
    shapes = [[p.shape for p in child.parameters() if p.ndim == 2] for child in children]
    others = any(
        not any(p.ndim == 2 for p in inner.parameters(recurse=False))
        for inner in children[0].modules()
        if next(inner.parameters(recurse=False), None) is not None
    )
    if others or any(s != shapes[0] for s in shapes) or len(shapes[0]) not in (2, 3):
        return None
    return len(children), {width for shape in shapes[0] for width in shape}


def _has_router(
    model: nn.Module, name: str, module: nn.Module, experts: int, widths: set[int]
) -> bool:
    """Whether beside the module, or in it, a matrix has a row for each expert."""
    around = model.get_submodule(name.rpartition(".")[0])
    own = {id(p) for child in module.children() for p in child.parameters()}
    return any(
        _is_router(parameter, experts, widths)
        for parameter in around.parameters()
        if id(parameter) not in own
    )


def _is_router(parameter: Tensor, experts: int, widths: set[int]) -> bool:
    if parameter.ndim != 2 or experts not in parameter.shape:
        return False
    rows, columns = parameter.shape
    return (rows == experts and columns in widths) or (columns == experts and rows in widths)
