"""One batch, in the one form that the library works with."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from d2dmoe.api.padding import RealTokens
from d2dmoe.errors import DataError, UserError, full_memory

TARGETS = ("labels", "label", "label_ids", "targets", "target")  # of these, the first that is there


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
        except Exception as error:  # of any kind: the model is anyone's
            if isinstance(error, UserError) or full_memory(error):
                raise
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
