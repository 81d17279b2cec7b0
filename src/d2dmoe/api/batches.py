"""Batches of any form that people have, in the one form that the library works with.

`forms` and `values`, which only this module uses, know what people's batches look like. One pass
reads them lazily, one at a time.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.api.batch import TARGETS, Batch
from d2dmoe.api.forms import FORMS, Rows, check_iterable, is_dataset, parted
from d2dmoe.api.forwards import Forward, unwrapped
from d2dmoe.api.padding import real_by_part
from d2dmoe.api.values import MASK_OF, as_indices, moved, pad, padded, tensor_of
from d2dmoe.discovery.examples import model_inside
from d2dmoe.discovery.refusals import check_loaded
from d2dmoe.errors import DataError, UserError
from d2dmoe.surgery import find

OF_TOKENIZERS = {  # what tokenizers add of themselves, which not every model takes
    "token_type_ids",
    "special_tokens_mask",
    "offset_mapping",
    "overflow_to_sample_mapping",
    "length",
}
INDICES = {*TARGETS, *MASK_OF}  # arguments that are classes or tokens
NOTHING = object()  # in place of a batch


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
            raw = next(_read(source), NOTHING)
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
        for number, raw in enumerate(_read(self._source), 1):
            self._read += 1
            try:
                batch = self._batch(raw)
            except DataError as error:
                raise DataError(f"batch {number}: {error}") from error.__cause__
            yield batch
        if not number:
            raise DataError(f"batches is empty: give at least one batch, as {FORMS}.")

    def _batch(self, raw: Any) -> Batch:
        inputs, targets = parted(raw)
        if isinstance(inputs, Mapping):
            args, (kwargs, labels) = (), self._arguments(inputs)
            targets = labels if targets is None else targets
        else:
            values = tuple(tensor_of("inputs", x) for x in inputs)
            named = self._form.main_input if len(values) == 1 else None
            args, kwargs = ((), {named: values[0]}) if named else (values, {})
        if targets is not None:
            targets = tensor_of("targets", targets)
            targets = padded("targets", targets, 0) if isinstance(targets, list) else targets
            if "labels" in self._form.names:
                kwargs["labels"] = targets
        return self._moved(args, kwargs, targets)

    def _arguments(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Those that forward takes, as tensors, and the targets, or None."""
        target = next((name for name in TARGETS if given.get(name) is not None), None)
        taken = {name: tensor_of(name, x) for name, x in given.items() if self._takes(name, target)}
        if not taken.keys() - {target}:
            raise DataError(
                f"none of its columns ({', '.join(map(str, given))}) is an input of the model: "
                f"{self._form.nearest('')}. Tokenise texts and preprocess images first."
            )
        pad(taken, self._pad_id, self._form)
        if target is None:
            return taken, None
        if target in taken:
            return taken, taken[target]
        targets = tensor_of(target, given[target])
        return taken, padded("labels", targets, 0) if isinstance(targets, list) else targets

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
        args = moved(args, device, dtype)
        kwargs = {
            name: as_indices(x) if name in INDICES else x
            for name, x in moved(kwargs, device, dtype).items()
        }
        real = real_by_part(self._model, self._form.bound(args, kwargs))
        batch = Batch(args, kwargs, as_indices(moved(targets, device, None)), real)
        _check_sizes(batch)
        return batch


def _read(source: Iterable[Any]) -> Iterator[Any]:
    """What a source gives.

    Raises:
        DataError: the source, of whatever kind, fails.
    """
    number = 1
    try:
        for raw in source:
            yield raw
            number += 1
    except UserError:
        raise
    except Exception as error:
        raise DataError(
            f"batch {number} cannot be read: batches raises {type(error).__name__}: {error}"
        ) from error


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
    columns = is_dataset(batches)
    if columns:
        if batch_size < 1:
            raise DataError(f"batch_size = {batch_size} must be at least 1")
        return Batches(Rows(batches, batch_size), model, columns)
    check_iterable(batches)
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


def _check_sizes(batch: Batch) -> None:
    if batch.inputs is None:
        raise DataError(f"no input is a tensor; give {FORMS}")
    if not len(batch):
        raise DataError("it holds no samples")
    _check_masks(batch)
    if isinstance(ids := batch.kwargs.get("input_ids"), Tensor) and ids.ndim < 2:
        raise DataError("input_ids are those of one text: add the samples' dimension, [1, tokens]")
    targets = batch.targets
    if isinstance(targets, Tensor) and (not targets.ndim or len(targets) != len(batch)):
        count = len(targets) if targets.ndim else "one number as"
        raise DataError(f"{len(batch)} samples have {count} targets")


def _check_masks(batch: Batch) -> None:
    """Refuse masks of other texts, and texts that are padding alone."""
    for name, mask_name in MASK_OF.items():
        tokens, mask = batch.kwargs.get(name), batch.kwargs.get(mask_name)
        given = [x for x in (tokens, mask) if isinstance(x, Tensor) and x.ndim == 2]
        cached = batch.kwargs.get("past_key_values") is not None  # which the mask is of too
        if len(given) == 2 and not cached and given[0].shape != given[1].shape:
            shapes = [tuple(x.shape) for x in given]
            raise DataError(f"{mask_name} of shape {shapes[1]} beside {name} of shape {shapes[0]}")
    for mask in batch.real_tokens.masks.values():
        if not mask.any():
            raise DataError("all of its tokens are padding, as its mask or its labels have it")
