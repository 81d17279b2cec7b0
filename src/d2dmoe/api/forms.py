"""The forms in which people have batches; what is none of them is refused with the way to it."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from d2dmoe.api.values import is_array
from d2dmoe.errors import DataError

FORMS = "dicts of the model's arguments, tensors, or pairs (inputs, targets)"


class Rows:
    """The rows of a `datasets.Dataset` in batches, as dicts of columns."""

    def __init__(self, dataset: Any, batch_size: int):
        self._dataset, self._batch_size = dataset, batch_size

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self._dataset.iter(self._batch_size)


def is_dataset(batches: Any) -> bool:
    """Whether it is a `datasets.Dataset`.

    Raises:
        DataError: it is several of them.
    """
    datasets: Any = sys.modules.get("datasets")  # not imported: then it is none of its objects
    if datasets is None or not hasattr(datasets, "IterableDataset"):
        return False
    if isinstance(batches, datasets.DatasetDict | datasets.IterableDatasetDict):
        first = next(iter(batches), "train")
        raise DataError(
            f"batches holds the splits {', '.join(batches)}: give one, as dataset[{first!r}]"
        )
    return isinstance(batches, datasets.Dataset | datasets.IterableDataset)


def check_iterable(batches: Any) -> None:
    """
    Raises:
        DataError: it is no iterable of batches; the message has the way to make it one.
    """
    if isinstance(batches, Mapping | Tensor) or _is_pair(batches):
        kind = type(batches).__name__
        raise DataError(f"batches is a single batch ({kind}): put it into a list, [batch]")
    if isinstance(batches, torch.utils.data.Dataset) and hasattr(batches, "__getitem__"):
        raise DataError(
            "batches is a Dataset, which holds samples: give torch.utils.data.DataLoader(dataset, "
            "batch_size=8)"
        )
    if isinstance(batches, str | bytes) or not isinstance(batches, Iterable):
        raise DataError(
            f"batches must be an iterable of {FORMS}, or a datasets.Dataset; "
            f"this is of type {type(batches).__name__}"
        )


def _is_pair(batches: Any) -> bool:
    """Whether it is a tuple (inputs, targets): lists hold batches, tuples are one."""
    return isinstance(batches, tuple) and any(isinstance(x, Tensor) for x in batches)


def parted(raw: Any) -> tuple[Any, Any]:
    """The inputs of a batch, a mapping or a tuple of tensors, and the targets, or None.

    Raises:
        DataError: it is of no known form.
    """
    targets = None
    if isinstance(raw, tuple | list):
        if len(raw) not in (1, 2):
            raise DataError(
                f"a {type(raw).__name__} of {len(raw)} is no pair (inputs, targets); several "
                "inputs are given as a dict, or as ((a, b), targets)"
            )
        raw, targets = (*raw, None)[:2]
        if isinstance(targets, Mapping):
            raise DataError("a batch is a list of samples: collate them, as a DataLoader does")
    if isinstance(raw, Mapping):
        return raw, targets
    if isinstance(raw, tuple | list) and raw and all(is_array(x) for x in raw):
        return tuple(raw), targets
    if is_array(raw):
        return (raw,), targets
    what = "text: tokenise it first" if isinstance(raw, str) else f"of type {type(raw).__name__}"
    raise DataError(f"inputs must be {FORMS}; these are {what}")
