"""Data: prepared once by rule `dataset`, then read by every stage that trains or measures."""

from d2dmoe.data.augment import augment, mix, normalise
from d2dmoe.data.batches import iterate
from d2dmoe.data.prepare import prepare
from d2dmoe.data.splits import Batch, CorpusSplit, ImageSplit, Split, TextSplit, open_split
from d2dmoe.data.text_splits import load_texts

__all__ = [
    "Batch",
    "CorpusSplit",
    "ImageSplit",
    "Split",
    "TextSplit",
    "augment",
    "iterate",
    "load_texts",
    "mix",
    "normalise",
    "open_split",
    "prepare",
]
