"""From texts and images to what models are called with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from d2dmoe.errors import DataError, UserError

Inputs = dict[str, Tensor]  # keyword arguments of a model's forward, each [batch, ...]
Encode = Callable[[Sequence[Any]], Inputs]  # of the contents of rows


class Texts:
    """Tokens of texts, int64 [batch, tokens], and which of them are no padding."""

    def __init__(self, tokenizer: Any, length: int):
        """`length` is the number of tokens after which a text is cut off."""
        self.tokenizer, self.length = tokenizer, length
        if tokenizer.pad_token is None:  # as in GPT-2; the mask says what is padding
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        if not all(isinstance(text, str) for text in texts):
            raise UserError("the model reads texts, --data holds images. Give texts.")
        return dict(self.tokenizer(list(texts), **self._options))

    def written(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The same of texts that a model is to write."""
        return dict(self.tokenizer(text_target=list(texts), **self._options))

    @property
    def _options(self) -> dict[str, Any]:
        cut_off = {"truncation": True, "max_length": self.length}
        return cut_off | {"padding": True, "return_tensors": "pt"}


class Images:
    """Pixels of image files, as the model's own preparation makes them."""

    def __init__(self, prepare: Callable[[list[Any]], Mapping[str, Tensor]]):
        """`prepare` makes inputs of PIL images in mode RGB."""
        self.prepare = prepare

    def __call__(self, files: Sequence[Any]) -> Inputs:
        if any(isinstance(file, str) for file in files):
            raise UserError("the model reads images, --data holds texts. Give a folder of images.")
        return dict(self.prepare([_opened(file) for file in files]))


def _opened(file: Any) -> Any:
    from PIL import Image

    from d2dmoe.data.pictures import readable

    try:
        with Image.open(file) as image:
            return readable(image).convert("RGB")
    except Exception as error:  # PIL's decoders raise a dozen unrelated types
        raise DataError(
            f"the image {file} cannot be read ({type(error).__name__}: {error}). Save it again, or "
            "remove it."
        ) from error
