"""What a model can be called with, taken from the model itself.

Models of transformers, timm and torchvision, and torch's own encoders, say what they take; for any
other the user gives an example.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.discovery.trace import Example, run
from d2dmoe.errors import ModelError

TOKENS = 16  # of a text; the decoder of an encoder-decoder model gets fewer, to be told apart
DECODER_TOKENS = 12
FRAMES = 24  # of audio


def example_for(model: nn.Module, given: Any = None) -> Example:
    """An example on the model's device.

    Args:
        model: any module.
        given: what to call the model with: keyword arguments as a mapping, positional ones as a
            tuple or list, or one tensor; None: taken from the model.

    Raises:
        ModelError: the model does not say what it takes, or cannot be called with it.
    """
    if given is not None:
        return _given(model, _as_example(given))
    failure = None
    device = next((p.device for p in model.parameters()), None)
    for guess in _guesses(model):
        example = _moved(guess, lambda x: x.to(device))
        try:
            _called(model, example)
            return example
        except ModelError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    raise ModelError(
        f"{type(model).__name__} does not say what it takes: give `example=`, what you would call "
        "it with (keyword arguments as a dict, positional ones as a tuple, or one tensor)."
        f"{model_inside(model)}"
    )


def model_inside(model: nn.Module) -> str:
    """A hint for a message: the model of transformers that others surround, as those of
    sentence-transformers do; empty where there is none, or it is such a model itself."""
    if isinstance(getattr(model, "main_input_name", None), str):
        return ""
    for name, module in model.named_modules():
        if name and isinstance(getattr(module, "main_input_name", None), str):
            return (
                f" Or give the {type(module).__name__} inside of it, {name}, which is changed too."
            )
    return ""


def shuffled(example: Example) -> Example:
    """An example of the same shapes and values in another order; masks of ones stay so."""
    generator = torch.Generator().manual_seed(1)

    def other(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 1:
            order = torch.randperm(value.shape[-1], generator=generator, device="cpu").to(
                value.device
            )
            return value[..., order]
        if isinstance(value, list | tuple):
            return type(value)(other(item) for item in value)
        if isinstance(value, Mapping):
            return {key: other(item) for key, item in value.items()}
        return value

    return Example(other(example.args), other(example.kwargs))


def _given(model: nn.Module, example: Example) -> Example:
    """It, on the model's device; of its dtype if it runs so alone."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(1))
    example = _moved(example, lambda x: x.to(weight.device))
    try:
        _called(model, example)
    except ModelError:
        cast = _moved(example, lambda x: x.to(weight.dtype) if x.is_floating_point() else x)
        if all(x.dtype == y.dtype for x, y in zip(cast.tensors, example.tensors, strict=True)):
            raise
        _called(model, cast)
        return cast
    return example


def _called(model: nn.Module, example: Example) -> None:
    try:
        run(model, example)
    except Exception as error:  # of any kind: the model is anyone's
        raise ModelError(
            f"{type(model).__name__} cannot be called with the example "
            f"({type(error).__name__}: {error}). Give `example=`, what you would call it with "
            "(keyword arguments as a dict, positional ones as a tuple, or one tensor)."
        ) from error


def _as_example(given: Any) -> Example:
    if isinstance(given, Mapping):
        return Example((), dict(given))
    if isinstance(given, list | tuple):
        return Example(tuple(given), {})
    return Example((given,), {})


def _moved(example: Example, to: Callable[[Tensor], Tensor]) -> Example:
    def move(value: Any) -> Any:
        return to(value) if isinstance(value, Tensor) else value

    args = tuple(move(value) for value in example.args)
    return Example(args, {name: move(value) for name, value in example.kwargs.items()})


def _guesses(model: nn.Module) -> Iterator[Example]:
    """Examples that may do, the best first, of the model's dtype."""
    generator = torch.Generator().manual_seed(0)
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(1))
    for make in (_of_transformers, _of_timm, _of_torchvision, _of_torch):
        for example in make(model, generator):
            yield _moved(example, lambda x: x.to(weight.dtype) if x.is_floating_point() else x)


def _of_transformers(model: nn.Module, generator: torch.Generator) -> Iterator[Example]:
    """Main input alone, with the decoder's, and with all that the model takes."""
    main, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if main not in MAKERS or config is None:
        return
    known = [name for name in inspect.signature(model.forward).parameters if name in MAKERS]
    decoder = [name for name in known if name.startswith("decoder_")]
    needed = [main, *(decoder if getattr(config, "is_encoder_decoder", False) else [])]
    for names in dict.fromkeys([tuple(needed), tuple(dict.fromkeys([*needed, *known]))]):
        try:
            yield Example((), {name: MAKERS[name](config, generator) for name in names})
        except (AttributeError, TypeError, ValueError):  # its configuration has other names
            continue


def _size(config: Any, *names: str) -> Any:
    """The first of these options that a configuration, or a part of it, has."""
    parts = [config, *(getattr(config, part, None) for part in ("text_config", "vision_config"))]
    for name in names:
        for part in parts:
            if getattr(part, name, None) is not None:
                return getattr(part, name)
    return None


def _tokens(config: Any, generator: torch.Generator, tokens: int = TOKENS) -> Tensor:
    """A text of ordinary tokens, with an end token where the model has one."""
    vocabulary = _size(config, "vocab_size") or 128  # of CANINE, which takes any letters
    longest = _size(config, "max_position_embeddings", "n_positions") or 2 * tokens
    special = {_size(config, f"{kind}_token_id") for kind in ("pad", "bos", "eos", "unk", "image")}
    special = {i for s in special for i in (s if isinstance(s, list) else [s])}
    ordinary = torch.tensor([i for i in range(vocabulary) if i not in special], device="cpu")
    shape = (1, max(1, min(tokens, longest // 2)))
    ids = ordinary[torch.randint(len(ordinary), shape, generator=generator, device="cpu")]
    end = _size(config, "eos_token_id")
    end = end[0] if isinstance(end, list) else end
    if end is not None and 0 <= end < vocabulary:
        ids[:, -1] = end
    return ids


def _pixels(config: Any, generator: torch.Generator) -> Tensor:
    size = _size(config, "image_size") or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    frames = _size(config, "num_frames")
    channels = _size(config, "num_channels", "in_channels") or 3
    shape = (1, *([frames] if frames else []), channels, height, width)
    return torch.randn(shape, generator=generator, device="cpu")


def _samples(config: Any, generator: torch.Generator) -> Tensor:
    """A wave, or a spectrogram."""
    if getattr(config, "num_mel_bins", None):
        return torch.randn(
            1, config.max_length, config.num_mel_bins, generator=generator, device="cpu"
        )
    strides = getattr(config, "conv_stride", None) or [320]
    return torch.randn(1, (FRAMES + 2) * prod(strides), generator=generator, device="cpu")


def _features(config: Any, generator: torch.Generator) -> Tensor:
    bins = _size(config, "num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim")
    if getattr(config, "input_feat_per_channel", None):
        return torch.randn(1, 4 * FRAMES, bins, generator=generator, device="cpu")
    if getattr(config, "max_source_positions", None):  # Whisper's, which takes one length alone
        return torch.randn(
            1, bins, 2 * config.max_source_positions, generator=generator, device="cpu"
        )
    return torch.randn(1, FRAMES, bins or 80, generator=generator, device="cpu")


def _decoder_tokens(config: Any, generator: torch.Generator) -> Tensor:
    return _tokens(getattr(config, "decoder", config), generator, DECODER_TOKENS)


MAKERS: dict[str, Callable[[Any, torch.Generator], Tensor]] = {
    "input_ids": _tokens,
    "pixel_values": _pixels,
    "input_values": _samples,
    "input_features": _features,
    "decoder_input_ids": _decoder_tokens,
}


def _of_timm(model: nn.Module, generator: torch.Generator) -> Iterator[Example]:
    about = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if about is None:
        return
    about = about if isinstance(about, Mapping) else vars(about)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    yield _image(model, size or about["input_size"][1:], generator)


def _of_torchvision(model: nn.Module, generator: torch.Generator) -> Iterator[Example]:
    if type(model).__module__.startswith("torchvision.models"):
        yield _image(model, (getattr(model, "image_size", 224),) * 2, generator)


def _image(model: nn.Module, size: Any, generator: torch.Generator) -> Example:
    convolutions = (m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    image = torch.randn(1, next(convolutions, 3), *size, generator=generator, device="cpu")
    return Example((image,), {})


def _of_torch(model: nn.Module, generator: torch.Generator) -> Iterator[Example]:
    """torch's own stacks, with two sequences of each kind that they take."""
    kinds = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
    both = (nn.Transformer, nn.TransformerDecoder, nn.TransformerDecoderLayer)
    if isinstance(model, kinds + both):
        norm = next(module for module in model.modules() if isinstance(module, nn.LayerNorm))
        shape = (2, TOKENS, *norm.normalized_shape)
        sequences = [torch.randn(shape, generator=generator, device="cpu") for _ in range(2)]
        yield Example(tuple(sequences[: 2 if isinstance(model, both) else 1]), {})
