"""The vendored texts are what their cards say, and no test text is known from train."""

import re
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, load_dataset
from small import others_later

from d2dmoe.data.vendored import vendored_file
from d2dmoe.text_references import ngram_loss_per_byte

ROOT = Path(__file__).parents[2]
TOPICS, ADDRESSES = "wikipedia-topics", "state-of-the-union"
SETS = [TOPICS, ADDRESSES]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The splits by name of a vendored set: {"train": ..., "test": ...}."""
    cache = tmp_path_factory.mktemp("cache")

    def load(name: str) -> dict[str, Dataset]:
        files = {p: str(vendored_file(name, f"{p}.parquet", ROOT)) for p in ("train", "test")}
        return load_dataset("parquet", data_files=files, cache_dir=str(cache))

    loaded = {name: load(name) for name in SETS}  # verifies the checksums, too
    return loaded.__getitem__


def card(name: str) -> str:
    return (ROOT / "resources" / name / "README.md").read_text(encoding="utf-8")


def table(name: str) -> dict[str, list[int]]:
    """The card's table: whole numbers by what stands in the first column."""
    rows = {}
    for line in card(name).splitlines():
        if line.startswith("| "):
            first, *others = (cell.strip(" *`").replace(",", "") for cell in line[1:-1].split("|"))
            rows[first] = [int(cell) for cell in others if cell.isdigit()]
    return rows


def normalised(texts: list[str]) -> list[str]:
    return [" ".join(text.lower().split()) for text in texts]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("column", others_later(["text", "title"], ["title"]))
def test_texts_and_titles_are_there_once(parts, name, column):
    both = [value for part in parts(name).values() for value in normalised(part[column])]
    assert all(both)
    assert len(set(both)) == len(both)


@pytest.mark.workflow
@pytest.mark.parametrize("name", SETS)
def test_no_text_begins_another(parts, name):
    both = sorted(text for part in parts(name).values() for text in normalised(part["text"]))
    # A text that begins another begins the next one in order, too.
    assert not any(b.startswith(a) for a, b in zip(both, both[1:], strict=False))


def test_a_topic_has_a_name_and_is_in_both_parts(parts):
    train, test = parts(TOPICS)["train"], parts(TOPICS)["test"]
    label = train.features["label"]
    assert isinstance(label, ClassLabel) and label == test.features["label"]
    assert set(train["label"]) == set(test["label"]) == set(range(label.num_classes))


def test_the_card_has_the_topics_counts(parts):
    train, test = (list(part["label"]) for part in parts(TOPICS).values())
    expected = {"all": [len(train), len(test), len(train) + len(test)]}
    for label, name in enumerate(parts(TOPICS)["train"].features["label"].names):
        counts = [train.count(label), test.count(label)]
        expected[name] = [*counts, sum(counts)]
        assert counts[1] == pytest.approx(0.15 * sum(counts), abs=0.5)
    assert table(TOPICS) == expected | {"topic": [], "---": []}


def test_the_place_of_a_text_does_not_tell_its_topic(parts):
    labels = list(parts(TOPICS)["train"]["label"])
    neighbours = sum(a == b for a, b in zip(labels, labels[1:], strict=False))
    assert neighbours < 0.15 * len(labels)  # sorted by topic: nearly all; by chance: 0.11


def test_the_card_has_the_addresses_sizes(parts):
    rows = table(ADDRESSES)
    for name, part in parts(ADDRESSES).items():
        size = sum(len(text.encode()) for text in part["text"])
        assert rows[f"{name}.parquet"] == [len(part), size]


def test_addresses_for_testing_are_a_tenth_from_all_times(parts):
    years = [int(title[:4]) for title in parts(ADDRESSES)["test"]["title"]]
    size = {n: sum(len(t.encode()) for t in p["text"]) for n, p in parts(ADDRESSES).items()}
    assert years == sorted(years)
    assert {year // 50 for year in years} == {year // 50 for year in range(1790, 2021)}
    assert 0.09 < size["test"] / sum(size.values()) < 0.11


@pytest.mark.workflow
def test_the_card_has_the_loss_of_counting_bytes(parts):
    train, test = ([text.encode() for text in part["text"]] for part in parts(ADDRESSES).values())
    stated = re.search(r"a loss of ([\d.]+) nats per byte", " ".join(card(ADDRESSES).split()))
    assert ngram_loss_per_byte(train, test) == pytest.approx(float(stated[1]), abs=5e-4)


@pytest.mark.parametrize("name", SETS)
def test_the_card_has_the_checksums(name):
    sums = (ROOT / "resources" / name / "SHA256SUMS").read_text()
    assert sums in card(name)
