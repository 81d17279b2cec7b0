"""What models are called with, the same for all: keyword arguments in, logits out."""

from torch import Tensor, nn

Inputs = dict[str, Tensor]  # keyword arguments of a model's forward, each [batch, ...]


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's logits: [batch, classes], or [batch, tokens, vocabulary]."""
    outputs = model(**inputs)
    return getattr(outputs, "logits", outputs)  # transformers wraps them, torchvision does not
