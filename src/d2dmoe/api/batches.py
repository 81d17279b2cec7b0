"""Batches of any form that people have, in the one form that the library works with.

No other module knows what people's batches look like. One pass reads them lazily, one at a time.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from d2dmoe.api.forwards import Forward, unwrapped
from d2dmoe.api.padding import IGNORED, RealTokens, real_tokens
from d2dmoe.discovery.examples import model_inside
from d2dmoe.discovery.refusals import check_loaded
from d2dmoe.errors import DataError, UserError
from d2dmoe.padding import MASK
from d2dmoe.surgery import find

TARGETS = ("labels", "label", "label_ids", "targets", "target")  # of these, the first that is there
OF_TOKENIZERS = {  # what tokenizers add of themselves, which not every model takes
    "token_type_ids",
    "special_tokens_mask",
    "offset_mapping",
    "overflow_to_sample_mapping",
    "length",
}
MASK_OF = {"input_ids": MASK, "decoder_input_ids": f"decoder_{MASK}"}
NOTHING = object()  # in place of a batch
FORMS = "dicts of the model's arguments, tensors, or pairs (inputs, targets)"


@dataclass(frozen=True)
class Batch:
    """What one forward is called with; tensors [samples, ...] on the model's device."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any  # what outputs are compared with, or None; also in kwargs if forward takes labels
    real_tokens: RealTokens  # which tokens are no padding

    def outputs(self, model: nn.Module) -> Any:
        """The model's outputs for the batch.

        Raises:
            DataError: the model cannot be called with it.
        """
        try:
            return model(*self.args, **self.kwargs)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of any kind: the model is anyone's
            values = (*(("", x) for x in self.args), *self.kwargs.items())
            shapes = [f"{n} {list(x.shape)}".strip() for n, x in values if isinstance(x, Tensor)]
            raise DataError(
                f"{type(model).__name__} cannot be called with a batch of {', '.join(shapes)} "
                f"({type(error).__name__}: {error})"
            ) from error

    @property
    def inputs(self) -> Tensor | None:
        """The first input that is a tensor of samples."""
        values = (*self.args, *self.kwargs.values())
        return next((x for x in values if isinstance(x, Tensor) and x.ndim), None)

    def __len__(self) -> int:
        """Number of samples."""
        return 1 if self.inputs is None else len(self.inputs)


class Batches:
    """The batches of an iterable, anew in each pass."""

    def __init__(self, source: Iterable[Any], model: nn.Module, columns: bool):
        """`columns`: whether it is a `datasets.Dataset`, whose other columns are left out."""
        self._source, self._model, self._columns = source, model, columns
        self._form = Forward.of(model)
        self._read = 0  # batches of the passes so far

    @property
    def one_shot(self) -> bool:
        """Whether it can be read once only, as a generator."""
        return isinstance(self._source, Iterator)

    def first(self) -> Batch:
        """The first batch, which a pass gives again.

        Raises:
            DataError: there is none, or it is of no known form.
        """
        source = self._source
        with torch.random.fork_rng([]):  # a loader that shuffles draws
            raw = next(iter(source), NOTHING)
        if self.one_shot:
            self._source = chain([] if raw is NOTHING else [raw], source)
        return next(iter(Batches([] if raw is NOTHING else [raw], self._model, self._columns)))

    def __iter__(self) -> Iterator[Batch]:
        if self.one_shot and self._read:
            raise DataError(
                f"batches is a generator, which ended after {self._read} batches, and more passes "
                "are needed. Give a list, a DataLoader or a Dataset instead."
            )
        number = 0
        for number, raw in enumerate(self._source, 1):
            self._read += 1
            try:
                batch = self._batch(raw)
            except DataError as error:
                raise DataError(f"batch {number}: {error}") from error.__cause__
            yield batch
        if not number:
            raise DataError(f"batches is empty: give at least one batch, as {FORMS}.")

    def _batch(self, raw: Any) -> Batch:
        inputs, targets = _parted(raw)
        if isinstance(inputs, Mapping):
            args, (kwargs, labels) = (), self._arguments(inputs)
            targets = labels if targets is None else targets
        else:
            values = tuple(_tensor("inputs", x) for x in inputs)
            named = self._form.main_input if len(values) == 1 else None
            args, kwargs = ((), {named: values[0]}) if named else (values, {})
        if targets is not None:
            targets = _tensor("targets", targets)
            targets = _padded("targets", targets, 0) if isinstance(targets, list) else targets
            if "labels" in self._form.names:
                kwargs["labels"] = targets
        return self._moved(args, kwargs, targets)

    def _arguments(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Those that forward takes, as tensors, and the targets, or None."""
        target = next((name for name in TARGETS if given.get(name) is not None), None)
        taken = {name: _tensor(name, x) for name, x in given.items() if self._takes(name, target)}
        if not taken.keys() - {target}:
            raise DataError(
                f"none of its columns ({', '.join(map(str, given))}) is an input of the model: "
                f"{self._form.nearest('')}. Tokenise texts and preprocess images first."
            )
        _pad(taken, self._pad_id, self._form)
        if target is None:
            return taken, None
        if target in taken:
            return taken, taken[target]
        targets = _tensor(target, given[target])
        return taken, _padded("labels", targets, 0) if isinstance(targets, list) else targets

    def _takes(self, name: Any, target: str | None) -> bool:
        """Whether forward takes an argument; what it does not take is left out or refused."""
        if name == target or name in OF_TOKENIZERS or self._columns:
            return name in self._form.names
        if not isinstance(name, str) or not self._form.takes(name):
            raise DataError(
                f"the model's forward does not take {name!r}: {self._form.nearest(str(name))}"
                f"{model_inside(self._model)}"
            )
        return True

    @property
    def _pad_id(self) -> int:
        """The token that texts are padded with; it is masked, so any of the vocabulary does."""
        config = getattr(unwrapped(self._model), "config", None)
        return getattr(config, "pad_token_id", None) or 0

    def _moved(self, args: tuple, kwargs: dict[str, Any], targets: Any) -> Batch:
        device, dtype = place_of(self._model)
        args = _to(args, device, dtype)
        kwargs = _to(kwargs, device, dtype)
        real = real_tokens(self._model, self._form.bound(args, kwargs))
        batch = Batch(args, kwargs, _to(targets, device, None), real)
        _check_sizes(batch)
        return batch


def as_batches(
    batches: Iterable[Any], model: nn.Module, *, batch_size: int = 8, again: bool = False
) -> Batches:
    """Batches as the model takes them: on its device, floating inputs in its dtype.

    A batch is a dict of forward's arguments (also a tokenizer's `BatchEncoding`), a tensor, or a
    pair (inputs, targets) whose inputs are one of these or a tuple of arguments. Targets go to
    forward's `labels` if it has them, and mean there what the model says. In dicts they may be
    called labels, label, label_ids, targets or target. Lists of token ids of different lengths are
    padded on the right and get an attention mask.

    A dict with a name that forward does not take is refused, but for what tokenizers add of
    themselves (token type ids and the like). From a `datasets.Dataset`, columns that forward does
    not take are left out, as transformers' Trainer does.

    Args:
        batches: an iterable of batches: a list, a DataLoader, a generator; or a `datasets.Dataset`.
        model: whose forward takes them; wrappers (DistributedDataParallel, PEFT) may surround it.
        batch_size: rows of a `datasets.Dataset` in a batch; other iterables hold batches already.
        again: whether they will be read more than once.

    Raises:
        ModelError: this is no torch module, or its weights are on the meta device.
        DataError: `batches` is of another type, or a generator that is needed again; later, while
            they are read: it is empty, or a batch is not of these forms or does not fit forward.
    """
    _check_there(model)
    columns = _is_dataset(batches)
    if columns:
        if batch_size < 1:
            raise DataError(f"batch_size = {batch_size} must be at least 1")
        return Batches(_Rows(batches, batch_size), model, columns)
    _check_iterable(batches)
    if again and isinstance(batches, Iterator):
        raise DataError(
            "batches is a generator, which can be read once only, and several passes are needed. "
            "Give a list, a DataLoader or a Dataset instead."
        )
    return Batches(batches, model, columns)


def place_of(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """The device and the dtype of floating inputs: those of the first floating parameter."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and not tensor.is_meta:
            return tensor.device, tensor.dtype
    return torch.device("cpu"), None


def _check_there(model: nn.Module) -> None:
    """Refuse a model whose weights are nowhere; accelerate loads those that it offloaded."""
    if not any(hasattr(module, "_hf_hook") for module in find(model, nn.Module).values()):
        check_loaded(model)


class _Rows:
    """The rows of a `datasets.Dataset` in batches, as dicts of columns."""

    def __init__(self, dataset: Any, batch_size: int):
        self._dataset, self._batch_size = dataset, batch_size

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self._dataset.iter(self._batch_size)


def _is_dataset(batches: Any) -> bool:
    datasets: Any = sys.modules.get("datasets")  # not imported: then it is none of its objects
    if datasets is None or not hasattr(datasets, "IterableDataset"):
        return False
    if isinstance(batches, datasets.DatasetDict | datasets.IterableDatasetDict):
        first = next(iter(batches), "train")
        raise DataError(
            f"batches holds the splits {', '.join(batches)}: give one, as dataset[{first!r}]"
        )
    return isinstance(batches, datasets.Dataset | datasets.IterableDataset)


def _check_iterable(batches: Any) -> None:
    """Refuse what is no iterable of batches, with the way to make it one."""
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


def _parted(raw: Any) -> tuple[Any, Any]:
    """The inputs, a mapping or a tuple of tensors, and the targets, or None."""
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
    if isinstance(raw, tuple | list) and raw and all(_is_array(x) for x in raw):
        return tuple(raw), targets
    if _is_array(raw):
        return (raw,), targets
    what = "text: tokenise it first" if isinstance(raw, str) else f"of type {type(raw).__name__}"
    raise DataError(f"inputs must be {FORMS}; these are {what}")


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or type(value).__module__ == "numpy"


def _tensor(name: str, value: Any) -> Any:
    """A tensor of arrays and of lists of numbers; a list of tensors if their lengths differ.
    Anything else (None, flags, nested inputs) is itself."""
    if _is_array(value) and not isinstance(value, Tensor):
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


def _pad(arguments: dict[str, Any], pad_id: int, form: Forward) -> None:
    """Make tensors of lists of texts, in place, and masks of their lengths."""
    for name, rows in list(arguments.items()):
        if not isinstance(rows, list):
            continue
        arguments[name] = _padded(name, rows, pad_id)
        mask = MASK_OF.get(name)
        if mask is None or mask in arguments:
            continue
        if not form.takes(mask):
            raise DataError(f"texts differ in length, and forward takes no {mask}: pad them")
        lengths = torch.tensor([len(row) for row in rows])
        arguments[mask] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()


def _padded(name: str, rows: list[Tensor], pad_id: int) -> Tensor:
    fill = IGNORED if name in TARGETS else pad_id if name in MASK_OF else 0
    return pad_sequence(rows, batch_first=True, padding_value=fill)


def _to(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """A value, or all that it holds, on a device; floating tensors of a dtype."""
    if isinstance(value, Tensor):
        if value.is_meta and device.type != "meta":
            raise DataError("a tensor is on the meta device, where it has no values")
        if value.is_nested or value.layout is not torch.strided:
            raise DataError("a tensor is nested or sparse: pad it, or make it dense")
        value = value.clone() if value.is_inference() else value.detach()  # of none's gradients
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {key: _to(x, device, dtype) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(x, device, dtype) for x in value)
    return value


def _check_sizes(batch: Batch) -> None:
    if batch.inputs is None:
        raise DataError(f"no input is a tensor; give {FORMS}")
    if not len(batch):
        raise DataError("it holds no samples")
    if isinstance(ids := batch.kwargs.get("input_ids"), Tensor) and ids.ndim < 2:
        raise DataError("input_ids are those of one text: add the samples' dimension, [1, tokens]")
    targets = batch.targets
    if isinstance(targets, Tensor) and (not targets.ndim or len(targets) != len(batch)):
        count = len(targets) if targets.ndim else "one number as"
        raise DataError(f"{len(batch)} samples have {count} targets")
