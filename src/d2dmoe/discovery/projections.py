"""The linear maps of attentions: found, and made modules that know their role, outputs as before.

Q, K and V go by what everybody calls them; the output map is the one that runs next on as many
tokens and leads back to the width that Q came from. Where one map gives Q, K and V, the values that
the attention multiplies by tell whether they lie side by side, all heads' or by groups of heads.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from d2dmoe.attention import ROLES, FusedProjections, Projection, SelfAttention
from d2dmoe.discovery import maps
from d2dmoe.discovery.adopt import Adoption, Step, adopt
from d2dmoe.discovery.examples import example_for
from d2dmoe.discovery.refusals import check
from d2dmoe.discovery.trace import Example, hooked, only_tensor, run
from d2dmoe.errors import ModelError

FUSED, WHOLE = "qkv", "qkvo"  # the roles of a map that gives three, and of torch's attention
WORDS = {"q": ("q", "query"), "k": ("k", "key"), "v": ("v", "value")}
FORMS = (
    *("{}", "{}_proj", "proj_{}", "{}_lin", "lin_{}", "{}_linear", "linear_{}", "w{}", "w_{}"),
    *("to_{}", "{}_layer", "{}_head", "{}_map", "fc_{}"),
)
NAMES = {form.format(word): role for role in WORDS for word in WORDS[role] for form in FORMS}
NAMES |= {form.format(FUSED): FUSED for form in FORMS}
NAMES |= dict.fromkeys(("c_attn", "query_key_value", "in_proj", "att_proj", "attn_qkv"), FUSED)
"""Roles by the last part of a map's name, in lower case."""


PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)


@dataclass
class FoundProjection:
    """A linear map of an attention, or an `nn.MultiheadAttention` with all four."""

    name: str
    role: str  # q, k, v or o; qkv or qkvo where one module has them all
    z: Tensor  # what it was called with first, [..., d_in]
    out: Tensor  # and gave, [..., d_out]
    tokens: int = 0  # of the example, at all calls
    widths: tuple[int, ...] = ()  # of Q, K and V in one map; empty: it is not known where they lie
    groups: int = 1  # of heads, whose Q, K and V lie side by side in that map

    @property
    def d_in(self) -> int:
        """Width of what it was called with."""
        return self.z.shape[-1]

    @property
    def d_out(self) -> int:
        """Width of what it gave."""
        return self.out.shape[-1]

    @property
    def flops(self) -> int:
        """Of the example."""
        return 2 * self.tokens * self.d_in * self.d_out

    @property
    def problem(self) -> str | None:
        """Why it cannot be taken apart, or None."""
        if self.role in (FUSED, WHOLE) and not self.widths:
            return (
                "Q, K and V lie in the output of one map neither side by side nor so by groups of "
                "heads"
            )
        return None


def separate_projections(model: nn.Module, example: Any = None) -> nn.Module:
    """Make the attention projections of a model, in place, modules of the type
    `attention.Projection`; fused ones are taken apart. Returns the model, its outputs as before.

    Maps that cannot be taken apart stay as they are; `inspect` lists them with the reason. A model
    that has such modules already stays as it is.

    Args:
        model: any Transformer.
        example: what the model can be called with; None: taken from the model.

    Raises:
        ModelError: there is none, or all are refused.
    """
    check(model)
    if any(getattr(module, "role", None) in ROLES for module in model.modules()):
        return model
    adoption = adopt_projections(model, example_for(model, example))
    if not adoption.done:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(adoption.refused.items())[:2])
        raise ModelError(
            f"{type(model).__name__} has no attention whose projections can be taken apart"
            + (f" ({reasons})" if reasons else "")
        )
    return model


def adopt_projections(model: nn.Module, example: Example) -> Adoption:
    """Take the attentions apart as far as that can be proved."""
    steps = {found.name: _step(model, found) for found in find_projections(model, example)}
    adoption = adopt(model, [s for s in steps.values() if isinstance(s, Step)], example)
    adoption.refused |= {name: why for name, why in steps.items() if isinstance(why, str)}
    return adoption


def _step(model: nn.Module, found: FoundProjection) -> Step | str:
    module = model.get_submodule(found.name)
    problem = found.problem
    if problem is None and not isinstance(module, nn.MultiheadAttention):
        problem = maps.problem_of(module)
    if problem:
        return problem
    made = _made(module, found)
    if made is None:
        return "it computes more than its weight and bias do"
    return Step(found.name, ((found.name, made.train(module.training)),), (found.name,) * 2)


def _made(module: nn.Module, found: FoundProjection) -> nn.Module | None:
    if isinstance(module, nn.MultiheadAttention):
        return SelfAttention(module)
    linear = maps.to_linear(module, found.z, found.out)
    if linear is None:
        return None
    if found.role == FUSED:
        return FusedProjections(linear.weight, linear.bias, found.widths, found.groups)
    return Projection.of(found.role, linear.weight, linear.bias)


def find_projections(model: nn.Module, example: Example) -> list[FoundProjection]:
    """The linear maps of the model's attentions that run, in their order."""
    trace = _Trace()

    def hook(name: str) -> Any:
        def see(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            if isinstance(module, nn.MultiheadAttention):
                trace.attention(name, module, args, kwargs, out)
                return
            z = only_tensor(args, kwargs)
            if z is not None and isinstance(out, Tensor) and z.is_floating_point():
                trace.map(name, z, out)

        return see

    modules = maps.maps_of(model)
    modules |= {n: m for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    with ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_hook(hook(name), with_kwargs=True)
            stack.enter_context(hooked(handle))
        with trace:
            run(model, example)
    return list(trace.found.values())


class _Trace(TorchFunctionMode):
    """Follows the maps that run, and the products of the attentions between them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, FoundProjection] = {}
        self._query: FoundProjection | None = None  # of the attention that runs
        self._fused: FoundProjection | None = None  # while its values have not been seen

    def map(self, name: str, z: Tensor, out: Tensor) -> None:
        """A linear map ran."""
        tokens = z[..., 0].numel()
        role = NAMES.get(name.rpartition(".")[2].lower())
        query = self._query
        if role is None:
            if query is None or (tokens, out.shape[-1]) != (query.z[..., 0].numel(), query.d_in):
                return
            role, self._query, self._fused = "o", None, None
        found = FoundProjection(name, role, z.clone(), out.clone())
        if role in ("q", FUSED):
            self._query = found
        if role == FUSED:
            self._fused = found
        self._add(found, tokens)

    def attention(
        self, name: str, module: nn.MultiheadAttention, args: tuple, kwargs: dict, out: Any
    ) -> None:
        """torch's own attention ran, which calls no maps."""
        inputs = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        query, key, value = inputs["query"], inputs["key"], inputs["value"]
        found = FoundProjection(name, WHOLE, query.clone(), torch.cat([out[0]] * 4, dim=-1))
        same = query is key and key is value
        if same and module.batch_first and module.bias_k is None and module._qkv_same_embed_dim:
            found.widths = (module.embed_dim,) * 3
        self._add(found, query[..., 0].numel())

    def _add(self, found: FoundProjection, tokens: int) -> None:
        known = self.found.setdefault(found.name, found)
        known.tokens += tokens

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fused = self._fused
        values = None if fused is None else _values(func, args, kwargs or {}, len(fused.out))
        if fused is not None and values is not None:
            layout = _layout(fused.out, values)
            if layout:
                found, self._fused = self.found[fused.name], None
                found.widths, found.groups = layout
        return func(*args, **(kwargs or {}))


def _values(func: Any, args: tuple, kwargs: dict, batch: int) -> Tensor | None:
    """V [batch, heads, tokens, width] of an attention's product."""
    if func is functional.scaled_dot_product_attention:
        values = args[2] if len(args) > 2 else kwargs.get("value")
    elif func in PRODUCTS and len(args) == 2:
        values = args[1]
    else:
        return None
    if not isinstance(values, Tensor):
        return None
    if values.ndim == 3 and len(values) % batch == 0:  # [batch · heads, tokens, width]
        values = values.unflatten(0, (batch, -1))
    return values if values.ndim == 4 else None


def _layout(fused: Tensor, values: Tensor) -> tuple[tuple[int, ...], int] | None:
    """Widths of Q, K and V in a fused output [batch, tokens, d], and by how many groups of heads
    they lie in it, if these values are the end of each; each may stand for several heads of Q."""
    if fused.ndim != 3 or values.shape[0] != fused.shape[0] or values.shape[2] != fused.shape[1]:
        return None
    for repeats in range(1, values.shape[1] + 1):
        if values.shape[1] % repeats:
            continue
        v = values[:, ::repeats].transpose(1, 2)  # [batch, tokens, heads, width]
        for groups in dict.fromkeys((1, v.shape[2])):
            widths = _widths(fused, v.flatten(-2), groups)
            if widths:
                return widths, groups
    return None


def _widths(fused: Tensor, v: Tensor, groups: int) -> tuple[int, ...]:
    """The widths, if V [batch, tokens, d_v] is the end of each of so many groups of [batch, tokens,
    d]; else none."""
    q = fused.shape[-1] - 2 * v.shape[-1]
    if q <= 0 or fused.shape[-1] % groups:
        return ()
    ends = fused.unflatten(-1, (groups, -1))[..., -v.shape[-1] // groups :].flatten(-2)
    return (q, v.shape[-1], v.shape[-1]) if v.equal(ends) else ()
