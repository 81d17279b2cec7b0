"""Attention projections as two-layer MLPs of about the same cost (paper section 3.5), so that they
can be sparsified, split into experts and routed like the FFNs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, scaled_dot_product_attention

from d2dmoe.ffn import FFN
from d2dmoe.lookup import look_up
from d2dmoe.pooling import pooled
from d2dmoe.surgery import find, swap

ROLES = ("q", "k", "v", "o")
"""Query, key, value and output map of an attention."""


class Projection(nn.Linear):
    """A linear map of an attention that knows its role; the names of its weights are Linear's."""

    role: str

    @classmethod
    def of(cls, role: str, weight: Tensor, bias: Tensor | None) -> "Projection":
        """A map with given weights [out, in] and bias [out]: parameters stay what they are, and of
        other tensors it owns copies, frozen where these are."""
        layer = cls(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        layer.role = role
        layer.weight = _parameter(weight)
        if bias is not None:
            layer.bias = _parameter(bias)
        return layer


def _parameter(values: Tensor) -> nn.Parameter:
    if isinstance(values, nn.Parameter):
        return values
    return nn.Parameter(values.detach().contiguous(), values.requires_grad)


@torch.enable_grad()  # parts of a trainable weight are trainable
def _add_parts(
    module: nn.Module,
    weight: Tensor,
    bias: Tensor | None,
    widths: Sequence[int],
    groups: int = 1,
) -> None:
    """Cut a fused weight [d, d_model] and bias [d] into the projections q, k and v."""
    biases = [None] * 3 if bias is None else _cut(bias, widths, groups)
    for role, w, b in zip("qkv", _cut(weight, widths, groups), biases, strict=True):
        module.add_module(role, Projection.of(role, w, b))


def _cut(fused: Tensor, widths: Sequence[int], groups: int) -> list[Tensor]:
    """The rows [width, ...] of Q, K and V in those of all, [d, ...]."""
    parts = fused.unflatten(0, (groups, -1)).split([width // groups for width in widths], dim=1)
    return [part.flatten(0, 1) for part in parts]


class FusedProjections(nn.Module):
    """Q, K and V where an architecture calls one map and cuts its output in three."""

    q: Projection
    k: Projection
    v: Projection

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        widths: Sequence[int] | None = None,
        groups: int = 1,
    ):
        """From the fused weight [d, d_model] and bias [d].

        Args:
            widths: of Q, K and V, which add up to d; None: all are the same.
            groups: of heads, if each has its Q, K and V side by side, as in GPT-NeoX; 1: Q, K and V
                of all heads lie side by side.
        """
        super().__init__()
        self.groups = groups
        _add_parts(self, weight, bias, list(widths or [weight.shape[0] // 3] * 3), groups)

    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., d]
        parts = [x.unflatten(-1, (self.groups, -1)) for x in (self.q(z), self.k(z), self.v(z))]
        return torch.cat(parts, dim=-1).flatten(-2)


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` as self-attention over a batch first, its four maps taken apart."""

    q: Projection
    k: Projection
    v: Projection
    # What torch's encoder layers ask for: without a common bias they call the module.
    batch_first, _qkv_same_embed_dim, in_proj_bias = True, True, None

    def __init__(self, fused: nn.MultiheadAttention):
        """Equal to `fused`, with copies of its weights.

        Raises:
            ValueError: `fused` has tokens before samples, added keys, or other widths of K and V.
        """
        super().__init__()
        if not fused.batch_first or fused.bias_k is not None or not fused._qkv_same_embed_dim:
            raise ValueError("only plain self-attention with batch_first can be taken apart")
        self.heads, self.dropout = fused.num_heads, fused.dropout
        _add_parts(self, fused.in_proj_weight, fused.in_proj_bias, [fused.embed_dim] * 3)
        self.o = Projection.of("o", fused.out_proj.weight, fused.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """The arguments of `nn.MultiheadAttention`; masks [batch, tokens] and [tokens, tokens] are
        boolean, true where attention is forbidden, or are added to its scores. Returns
        [batch, tokens, d_model], no weights."""
        if need_weights:
            raise ValueError("this attention does not give its weights")
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [batch, heads, tokens, d_head]
            for x in (self.q(query), self.k(key), self.v(value))
        )
        allowed = None if attn_mask is None or is_causal else _allowed(attn_mask)
        if key_padding_mask is not None:
            real = _allowed(key_padding_mask)[:, None, None, :]
            tokens = q.shape[2]
            if is_causal:
                allowed = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
            allowed = real if allowed is None else _both(allowed, real)
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal and allowed is None,
        )
        return self.o(out.transpose(1, 2).flatten(-2)), None


def _allowed(mask: Tensor) -> Tensor:
    """A mask of `nn.MultiheadAttention` as `scaled_dot_product_attention` takes it."""
    return mask if mask.is_floating_point() else ~mask


def _both(one: Tensor, other: Tensor) -> Tensor:
    """Where both allow attention; what is added to its scores, if one of them is added."""
    if one.dtype == other.dtype == torch.bool:
        return one & other
    dtype = torch.promote_types(one.dtype, other.dtype)
    return _added(one, dtype) + _added(other, dtype)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)


def mark_projections(attention: nn.Module, names: dict[str, str]) -> None:
    """Turn separate linear maps of an attention into `Projection`s, in place; `names` maps the
    roles to the maps' names in the attention."""
    for role, name in names.items():
        linear: Any = attention.get_submodule(name)
        swap(attention, name, Projection.of(role, linear.weight, linear.bias))


def mlp_width(projection: nn.Linear, factor: float, multiple: int) -> int:
    """Hidden neurons of the MLP that costs about `factor` times the projection.

    A map d → d' has d d' + d' parameters, a hidden neuron adds d + d' + 1.

    Args:
        projection: the map to be replaced.
        factor: cost of the MLP relative to it.
        multiple: the width is rounded to a multiple of it, at least one.
    """
    d_in, d_out = projection.in_features, projection.out_features
    exact = factor * (d_in * d_out + d_out) / (d_in + d_out + 1)
    return max(1, round(exact / multiple)) * multiple


def projection_mlp(projection: Projection, width: int, dropout: float = 0.0) -> FFN:
    """A fresh MLP of the projection's shape: Linear → ReLU → dropout → Linear."""
    place: dict[str, Any] = {
        "device": projection.weight.device,
        "dtype": projection.weight.dtype,
    }
    up = nn.Linear(projection.in_features, width, **place)
    down = nn.Linear(width, projection.out_features, **place)
    return FFN(up, down, "relu", hidden_dropout=dropout, role=projection.role)


def find_projections(model: nn.Module, maps: Sequence[str]) -> dict[str, Projection]:
    """The model's projections of the roles `maps`, by name.

    Raises:
        UnknownName: a role is none of `ROLES`.
    """
    for role in maps:
        look_up(dict.fromkeys(ROLES), role, "role of a projection")
    return {n: p for n, p in find(model, Projection).items() if p.role in maps}


def projection_mlps(
    model: nn.Module, widths: dict[str, int], dropout: float = 0.0
) -> dict[str, FFN]:
    """Fresh MLPs for the model's projections, by the projections' names; `widths` are their hidden
    neurons by role. `replace_projections` puts them in."""
    projections = find_projections(model, list(widths))
    return {n: projection_mlp(p, widths[p.role], dropout) for n, p in projections.items()}


def replace_projections(model: nn.Module, mlps: dict[str, FFN]) -> nn.Module:
    """Put MLPs, in place, where the projections of those names are; returns the model."""
    for name, mlp in mlps.items():
        swap(model, name, mlp)
    return model


def imitation_loss(mlp: FFN, z: Tensor, out: Tensor) -> Tensor:
    """Mean squared error of the MLP for the projection's inputs z [tokens, d_in] and outputs out
    [tokens, d_out]."""
    return pooled(mse_loss(mlp(z), out), z[..., 0].numel())
