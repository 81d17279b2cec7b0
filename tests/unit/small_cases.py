"""Dense models that methods are tried on: images, padded texts, and texts in blocks with fused
projections or gated FFNs, each with the data that it reads."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from small import ABOUT, SPEC, make_dense, make_images
from small_language import language_spec, make_corpus_split, make_language, make_text_split
from torch import nn

from d2dmoe.data.splits import Split
from d2dmoe.spec import ModelSpec


class Case(NamedTuple):
    """A dense model with two blocks."""

    make: Callable[[], nn.Module]
    spec: ModelSpec
    split: Split


def _language(name: str, split: Split) -> Case:
    return Case(partial(make_language, name), language_spec(name), split)


CASES = {
    "vit": Case(make_dense, SPEC, dataclasses.replace(make_images(24), about=ABOUT)),
    "bert": _language("bert", make_text_split()),
    "gpt2": _language("gpt2", make_corpus_split(6)),
    "gemma": _language("gemma", make_corpus_split(6)),
}
FFNS = ["vit", "bert", "gemma"]  # for what reads FFNs alone: GPT-2's are as the first two's
