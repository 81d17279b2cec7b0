"""Reference points for text: what counting words, or bytes, achieves without a neural network.

Topics: logistic regression on TF-IDF. Language modelling: a byte-level n-gram model with modified
Kneser-Ney smoothing, interpolated (Chen & Goodman 1998).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

START = 256  # stands before a document; never predicted
SYMBOLS = 257
MAX_ORDER = 7  # 257**7 < 2**63: an n-gram is one int64, its oldest symbol most significant


def tfidf_accuracy(
    train_texts: Sequence[str],
    train_labels: Sequence[int],
    test_texts: Sequence[str],
    test_labels: Sequence[int],
) -> float:
    """Accuracy on test, in 0..1, of logistic regression on words and pairs of adjacent words.

    Deterministic.

    Raises:
        ValueError: no word occurs in two training texts, or their labels are all the same.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import
    from sklearn.linear_model import LogisticRegression

    # What a single text has tells nothing of others, and is three quarters of all terms.
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    # TF-IDF rows have length 1, for which the default C = 1 is too strong a penalty.
    classifier = LogisticRegression(C=100, max_iter=1000)
    classifier.fit(tfidf.fit_transform(train_texts), train_labels)
    return float(classifier.score(tfidf.transform(test_texts), test_labels))


def ngram_loss_per_byte(train: Sequence[bytes], test: Sequence[bytes], order: int = 5) -> float:
    """Mean negative log-likelihood of test, in nats per byte, with order - 1 bytes of context.

    No context reaches back beyond a document's start.

    Raises:
        ValueError: train or test has no bytes, or order is not in 1..MAX_ORDER.
    """
    grams, count = np.unique(all_ngrams(test, order), return_counts=True)
    probability = KneserNey.fit(train, order).probability(grams)
    return float(-(count @ np.log(probability)) / count.sum())


def all_ngrams(documents: Sequence[bytes], order: int) -> np.ndarray:
    """The n-gram that ends in each byte of each document, coded: int64 [bytes].

    Raises:
        ValueError: the documents have no bytes, or order is not in 1..MAX_ORDER.
    """
    if not 1 <= order <= MAX_ORDER:
        raise ValueError(f"order {order} is not in 1..{MAX_ORDER}")
    if not any(documents):
        raise ValueError("the documents have no bytes")
    return np.concatenate([_ngrams(document, order) for document in documents])


def _ngrams(document: bytes, order: int) -> np.ndarray:
    symbols = np.full(order - 1 + len(document), START, dtype=np.int64)
    symbols[order - 1 :] = np.frombuffer(document, np.uint8)
    code = np.zeros(len(document), dtype=np.int64)
    for i in range(order):
        code = code * SYMBOLS + symbols[i : i + len(document)]
    return code


@dataclass(frozen=True)
class Level:
    """The n-grams of one order; codes ascend."""

    grams: np.ndarray  # int64 [G]
    share: np.ndarray  # float64 [G]: what is left of the last byte's frequency after the discount
    contexts: np.ndarray  # int64 [C]: the grams without their last byte
    rest: np.ndarray  # float64 [C]: the discounts' sum, which the next lower order distributes

    @classmethod
    def of(cls, grams: np.ndarray, count: np.ndarray) -> "Level":
        """From distinct codes, ascending, and their counts: int64 [G] each."""
        discount = discounts(count)[np.minimum(count, 3) - 1]
        contexts, context = np.unique(grams // SYMBOLS, return_inverse=True)
        total = np.bincount(context, count)
        rest = np.bincount(context, discount) / total
        return cls(grams, (count - discount) / total[context], contexts, rest)


@dataclass(frozen=True)
class KneserNey:
    """A byte-level n-gram model."""

    levels: list[Level]  # from single bytes up

    @classmethod
    def fit(cls, documents: Sequence[bytes], order: int) -> "KneserNey":
        """Raises ValueError as all_ngrams does."""
        grams, count = np.unique(all_ngrams(documents, order), return_counts=True)
        levels = [Level.of(grams, count)]
        for length in range(order - 1, 0, -1):
            # A shorter n-gram counts once for each symbol seen before it, not for each occurrence:
            # it is asked only where the longer one is rare.
            grams, count = np.unique(grams % SYMBOLS**length, return_counts=True)
            levels.append(Level.of(grams, count))
        return cls(levels[::-1])

    def probability(self, grams: np.ndarray) -> np.ndarray:
        """Of the last byte of each n-gram (coded, int64 [N]) after the others: float64 [N]."""
        probability = np.full(len(grams), 1 / 256)  # after single bytes: all alike
        for length, level in enumerate(self.levels, start=1):
            suffix = grams % SYMBOLS**length
            share = _look_up(level.grams, level.share, suffix, missing=0.0)
            rest = _look_up(level.contexts, level.rest, suffix // SYMBOLS, missing=1.0)
            probability = share + rest * probability
        return probability


def discounts(count: np.ndarray) -> np.ndarray:
    """What to take from counts of 1, 2, and 3 or more: float64 [3], each in (0, its count].

    Estimated from how many counts are 1 to 4.
    """
    ones, twos, threes, fours = (np.count_nonzero(count == c) for c in (1, 2, 3, 4))
    one = ones / (ones + 2 * twos) if ones else 0.5
    if not (ones and twos and threes and fours):
        return np.full(3, one)  # too few n-grams for three estimates
    ratios = np.array([twos / ones, threes / twos, fours / threes])
    counts = np.arange(1, 4)
    return np.clip(counts - (counts + 1) * one * ratios, one, counts)


def _look_up(
    keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float
) -> np.ndarray:
    """values [K] at the ascending keys [K] that equal `wanted` [N], or `missing`: [N]."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], missing)
