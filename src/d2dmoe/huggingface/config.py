"""What a converted model's `config.json` says of it, as its `quantization_config`."""

from collections.abc import Iterator
from typing import Any
from weakref import ref

from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from d2dmoe import __version__
from d2dmoe.lookup import resolve

METHOD = "d2dmoe"  # its `quant_method`


@register_quantization_config(METHOD)
class ConversionConfig(QuantizationConfigMixin):
    """`layers.describe` of a model as it is at this moment, so that the operating point is true;
    and `absent`, the tensors that its class may have and this model has not.

    It refers to the model weakly. A copy of it describes the model's copy if both are copied
    together; else, as when it is pickled, it keeps what it said then.
    """

    def __init__(self, model: PreTrainedModel | None = None, **described: Any):
        """Of a model, and of values that `to_dict` gave."""
        self.quant_method: Any = METHOD  # which transformers types as one of its own
        self._model = None if model is None else ref(model)
        self._described = described

    @property
    def described(self) -> dict[str, Any]:
        """As `layers.rebuild` takes it."""
        model = self._model() if self._model else None
        present = {} if model is None else resolve("d2dmoe.layers:describe")(model)
        return self._described | present

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "version": __version__} | self.described

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConversionConfig) and self.to_dict() == other.to_dict()

    def __deepcopy__(self, memo: dict[int, Any]) -> "ConversionConfig":
        model = self._model() if self._model else None
        return ConversionConfig(memo.get(id(model)), **self.described)

    def __reduce__(self) -> tuple[Any, ...]:
        return ConversionConfig.from_dict, (self.to_dict(),)

    @classmethod
    def from_dict(cls, config_dict: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        described = {k: v for k, v in config_dict.items() if k not in ("quant_method", "version")}
        config = cls(**described)
        return (config, kwargs) if return_unused_kwargs else config
