"""Tensors of what people have in their batches: arrays, lists of numbers, texts of any length."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from d2dmoe.api.batch import TARGETS
from d2dmoe.api.forwards import Forward
from d2dmoe.api.padding import IGNORED
from d2dmoe.errors import DataError
from d2dmoe.padding import MASK

WHOLE = (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32)
MASK_OF = {"input_ids": MASK, "decoder_input_ids": f"decoder_{MASK}"}


def is_array(value: Any) -> bool:
    """Whether it is a tensor, or one of numpy's."""
    return isinstance(value, Tensor) or type(value).__module__ == "numpy"


def tensor_of(name: str, value: Any) -> Any:
    """A tensor of arrays and of lists of numbers; a list of tensors if their lengths differ.
    Anything else (None, flags, nested inputs) is itself."""
    if is_array(value) and not isinstance(value, Tensor):
        if value.dtype != object:
            return _converted(name, value)
        value = list(value)  # arrays of several lengths
    if not isinstance(value, list | tuple) or not value:
        return value
    rows = [_converted(name, row) for row in value]
    if len({row.shape for row in rows}) == 1:
        return torch.stack(rows)
    if all(row.ndim == 1 and not row.is_floating_point() for row in rows):
        return rows
    shapes = ", ".join(str(tuple(row.shape)) for row in rows[:3])
    raise DataError(f"samples of {name!r} differ in shape ({shapes}, …): collate them to one")


def _converted(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise DataError(
            f"{name!r} holds a value of type {kind} that is no number or array ({error}); tokenise "
            "texts, preprocess images, and leave out rows without a value"
        ) from error


def pad(arguments: dict[str, Any], pad_id: int, form: Forward) -> None:
    """Make tensors of lists of texts, in place, and masks of their lengths."""
    for name, rows in list(arguments.items()):
        if not isinstance(rows, list):
            continue
        arguments[name] = padded(name, rows, pad_id)
        mask = MASK_OF.get(name)
        if mask is None or mask in arguments:
            continue
        if not form.takes(mask):
            raise DataError(f"texts differ in length, and forward takes no {mask}: pad them")
        lengths = torch.tensor([len(row) for row in rows])
        arguments[mask] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()


def padded(name: str, rows: list[Tensor], pad_id: int) -> Tensor:
    """The rows, each [tokens, ...], as one tensor [rows, most tokens, ...], padded on the right:
    targets by the ignored index, token ids by `pad_id`, all else by 0."""
    fill = IGNORED if name in TARGETS else pad_id if name in MASK_OF else 0
    return pad_sequence(rows, batch_first=True, padding_value=fill)


def moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """A value, or all that it holds, on a device; floating tensors of a dtype."""
    if isinstance(value, Tensor):
        if value.is_meta and device.type != "meta":
            raise DataError("a tensor is on the meta device, where it has no values")
        if value.is_nested or value.layout is not torch.strided:
            raise DataError("a tensor is nested or sparse: pad it, or make it dense")
        value = value.clone() if value.is_inference() else value.detach()  # of none's gradients
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {key: moved(x, device, dtype) for key, x in value.items()}
    if isinstance(value, list | tuple):
        items = [moved(x, device, dtype) for x in value]
        return items if isinstance(value, list) else _as_tuple(value, items)
    return value


def as_indices(value: Any) -> Any:
    """Whole numbers of any size, as numpy and files have them, as torch takes indices: int64."""
    return value.long() if isinstance(value, Tensor) and value.dtype in WHOLE else value


def _as_tuple(like: Any, items: list[Any]) -> tuple:
    """A tuple of the items, by their names where it has names."""
    return type(like)(*items) if hasattr(like, "_fields") else tuple(items)
