"""Images: prepared once by rule `dataset`, then read by every stage that trains or measures."""

from d2dmoe.data.augment import augment, mix, normalise
from d2dmoe.data.batches import iterate
from d2dmoe.data.prepare import prepare
from d2dmoe.data.splits import ImageSplit, open_split

__all__ = ["ImageSplit", "augment", "iterate", "mix", "normalise", "open_split", "prepare"]
