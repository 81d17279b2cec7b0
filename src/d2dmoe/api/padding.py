"""Which tokens of a forward are padding: they count neither in losses nor in costs.

Layers compute padding as they do all tokens; only what is summed over tokens leaves it out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from d2dmoe.api.forwards import is_encoder_decoder, unwrapped
from d2dmoe.padding import DECODER, WHOLE, masks_of

IGNORED = -100  # the target of tokens that are not to be predicted, torch's and transformers'


@dataclass(frozen=True)
class RealTokens:
    """The real tokens of one forward, for each part of the model that reads tokens of its own."""

    masks: Mapping[str, Tensor] = field(default_factory=dict)  # bool [batch, tokens], by part
    decoder: str | None = None  # the name of the module that reads the decoder's tokens

    def of(self, layer: str, shape: Sequence[int]) -> Tensor | None:
        """The real ones of the tokens that a layer has seen.

        Args:
            layer: the layer's name in the model.
            shape: of its tokens, without features: (batch, tokens), or (batch · tokens,).

        Returns:
            Boolean, of that shape; None where all are real, as patches of images are.
        """
        inside = self.decoder is not None and f"{layer}.".startswith(f"{self.decoder}.")
        own, other = (DECODER, WHOLE) if inside else (WHOLE, DECODER)
        if own not in self.masks:
            return None
        for part in (own, other):  # keys and values of cross-attention are the other part's
            if part in self.masks and (mask := _fitted(self.masks[part], tuple(shape))) is not None:
                return mask
        return None


def _fitted(mask: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """A mask [batch, tokens] in the layout of a layer's tokens; None where it is of others."""
    if mask.shape == shape:
        return mask
    if mask.T.shape == shape:
        return mask.T
    return mask.flatten() if shape == (mask.numel(),) else None


def real_by_part(model: nn.Module, arguments: Mapping[str, Any]) -> RealTokens:
    """Of a call of forward, by its arguments' names.

    A decoder's tokens are those with `decoder_attention_mask`; without one, and where the model
    makes them of `labels`, those that are to be predicted.
    """
    masks = masks_of(arguments)
    if not is_encoder_decoder(model):
        return RealTokens(masks, DECODER if DECODER in masks else None)
    labels = arguments.get("labels")
    made_of_labels = arguments.get("decoder_input_ids") is None
    if DECODER not in masks and made_of_labels and isinstance(labels, Tensor) and labels.ndim == 2:
        masks[DECODER] = labels.ne(IGNORED)
    return RealTokens(masks, _decoder_of(model))


def _decoder_of(model: nn.Module) -> str | None:
    decoder = unwrapped(model).get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), None)
