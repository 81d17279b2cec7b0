"""Laws of the reference points for text."""

import random

import numpy as np
import pytest

from d2dmoe.text_references import (
    KneserNey,
    all_ngrams,
    discounts,
    ngram_loss_per_byte,
    tfidf_accuracy,
)

ENGLISH = (
    b"The Secretary of the Treasury has my directions to communicate such further particulars as "
    b"may be requisite for more precise information. The laws you have already passed for the "
    b"establishment of a judiciary system have opened the doors of justice to all descriptions."
)
TOPICS = ["the cat chased a mouse and a bird", "two planets orbit the star in space"]


def random_bytes(count: int, seed: int, letters: int = 256) -> bytes:
    return np.random.default_rng(seed).integers(letters, size=count, dtype=np.uint8).tobytes()


def markov_bytes(count: int, seed: int) -> bytes:
    """Each byte is one of two that the byte before allows: log 2 nats per byte."""
    value, choices = 0, np.random.default_rng(seed).integers(2, size=count)
    return bytes(value := (5 * value + int(choice)) % 64 for choice in choices)


@pytest.mark.parametrize("order", [1, 2, 5, 7])
@pytest.mark.parametrize(
    "context", [b"", b"T", b"The ", b"he laws ", b"zzzzzzzz", b"the \xff\xff\xff", b"\x00"]
)
def test_the_probabilities_of_the_next_byte_sum_to_one(order, context):
    model = KneserNey.fit([ENGLISH, b"The end", b""], order)
    grams = [all_ngrams([context + bytes([byte])], order)[-1] for byte in range(256)]
    probability = model.probability(np.array(grams))
    assert probability.min() > 0
    assert probability.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_random_bytes_cost_about_log_256(order):
    loss = ngram_loss_per_byte([random_bytes(100_000, 0)], [random_bytes(10_000, 1)], order)
    assert np.log(256) - 0.01 < loss < np.log(256) + 0.1


def test_repeated_text_costs_next_to_nothing():
    assert ngram_loss_per_byte([b"abcab" * 1000], [b"abcab" * 100]) < 0.01


def test_a_known_source_costs_its_entropy():
    loss = ngram_loss_per_byte([markov_bytes(100_000, 0)], [markov_bytes(10_000, 1)])
    assert np.log(2) - 0.01 < loss < np.log(2) + 0.01


def test_more_data_helps():
    test = [random_bytes(5_000, 9, letters=8)]
    sizes = [100, 1_000, 10_000, 100_000]
    losses = [ngram_loss_per_byte([random_bytes(n, 0, letters=8)], test, 3) for n in sizes]
    assert losses == sorted(losses, reverse=True)


def test_longer_contexts_help_where_they_matter():
    train, test = [markov_bytes(50_000, 0)], [markov_bytes(5_000, 1)]
    assert ngram_loss_per_byte(train, test, 2) < ngram_loss_per_byte(train, test, 1) - 1


def test_the_order_of_documents_does_not_matter():
    train = [random_bytes(500, seed, letters=4) for seed in range(6)]
    test = [random_bytes(100, seed, letters=4) for seed in range(9, 13)]
    assert ngram_loss_per_byte(train, test) == ngram_loss_per_byte(train[::-1], test[::-1])


def test_no_context_reaches_back_beyond_a_documents_start():
    apart = ngram_loss_per_byte([b"ab"] * 1000, [b"ab", b"ab"])
    assert apart < 0.01  # every document begins with a, which b never precedes
    assert ngram_loss_per_byte([b"ab"] * 1000, [b"abab"]) > 1


def test_rarely_seen_continuations_are_believed_less():
    """After "x", "y" is frequent but "q" follows everything: elsewhere q is likelier than y."""
    model = KneserNey.fit([b"xy" * 50 + b"aqbqcqdqeqfqgq"], 2)
    grams = all_ngrams([b"ky", b"kq"], 2)[[1, 3]]  # k was never seen
    y, q = model.probability(grams)
    assert q > 3 * y


def test_discounts_are_positive_and_at_most_the_count():
    generator = random.Random(0)
    for size in [1, 3, 10, 1000]:
        for largest in [1, 2, 5, 50]:
            found = discounts(np.array([generator.randint(1, largest) for _ in range(size)]))
            assert (found > 0).all() and (found <= [1, 2, 3]).all()


def test_discounts_are_chen_and_goodmans():
    count = np.repeat([1, 2, 3, 4, 9], [40, 15, 8, 5, 2])
    one = 40 / 70
    expected = [one, 2 - 3 * one * 8 / 15, 3 - 4 * one * 5 / 8]
    assert discounts(count) == pytest.approx(expected)


@pytest.mark.parametrize("order", [0, 8])
def test_an_impossible_order_is_refused(order):
    with pytest.raises(ValueError, match=f"order {order} is not in 1..7"):
        ngram_loss_per_byte([b"a"], [b"a"], order)


@pytest.mark.parametrize(("train", "test"), [([], [b"a"]), ([b"a"], [b""])])
def test_documents_without_bytes_are_refused(train, test):
    with pytest.raises(ValueError, match="no bytes"):
        ngram_loss_per_byte(train, test)


@pytest.mark.workflow
def test_tfidf_separates_what_words_separate():
    labels = [0, 1] * 10
    assert (
        tfidf_accuracy(TOPICS * 10, labels, ["a cat", "a star in space", "mouse"], [0, 1, 0]) == 1
    )


@pytest.mark.workflow
def test_tfidf_sees_pairs_of_words():
    train = ["up not down", "down not up"] * 5
    assert tfidf_accuracy(train, [0, 1] * 5, ["up not down", "down not up"], [0, 1]) == 1


def test_tfidf_cannot_tell_what_words_do_not():
    accuracy = tfidf_accuracy(TOPICS * 10, [0, 1] * 10, TOPICS * 5, [0] * 10)
    assert accuracy == 0.5
