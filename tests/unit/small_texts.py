"""Small texts, and sets of them in the forms in which the paper's are published."""

import gzip
import json
from pathlib import Path

import numpy as np

CARER = ["sadness", "joy", "love", "anger", "fear", "surprise"]
WORDS = "the a model token block house river green old naïve 東京 runs sees and of to 😀".split()
C4_CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
- config_name: de
  data_files:
  - split: train
    path: de/c4-train.*.json.gz
---
"""


def make_texts(count: int, seed: int, words: int = 30) -> list[str]:
    """Texts of up to so many words, no two of them equal."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(words // 3, words, count)
    return [" ".join([*rng.choice(WORDS, n), f"{seed}.{i}"]) for i, n in enumerate(lengths)]


def make_carer(folder: Path, test_label: int = 0) -> dict[str, list[str]]:
    """dair-ai/emotion: text and label, of unequally large classes; train, validation and test."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=CARER)})
    texts = {}
    for seed, (split, count) in enumerate({"train": 120, "validation": 20, "test": 24}.items()):
        texts[split] = make_texts(count, seed)
        labels = [min(i % 10, 5) for i in range(count)]  # surprise is as large as all others
        if split == "test" and test_label < 0:
            labels = [test_label] * count
        rows = Dataset.from_dict({"text": texts[split], "label": labels}, features=features)
        save_parquet(rows, folder / "split" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: split\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: split/{s}-*\n" for s in texts)
        + "---\n"
    )
    return texts


def make_openwebtext(folder: Path, count: int = 40) -> list[str]:
    """Skylion007/openwebtext: text; train only, in several files."""
    from datasets import Dataset

    texts = make_texts(count, seed=7, words=60)
    for shard in range(2):
        rows = Dataset.from_dict({"text": texts[shard * count // 2 : (shard + 1) * count // 2]})
        save_parquet(rows, folder / "plain_text" / f"train-{shard:05d}-of-00002.parquet")
    return texts


def make_c4(folder: Path) -> dict[str, list[str]]:
    """allenai/c4: text, timestamp and url, as gzipped lines of JSON; train and validation."""
    (folder / "en").mkdir(parents=True)
    (folder / "README.md").write_text(C4_CARD)
    texts = {"train": make_texts(40, 8, words=60), "validation": make_texts(12, 9, words=60)}
    for split, docs in texts.items():
        half = len(docs) // 2
        for shard, part in enumerate((docs[:half], docs[half:])):
            save_c4(folder / "en" / f"c4-{split}.{shard:05d}-of-00002.json.gz", part)
    return texts


def save_c4(path: Path, texts: list[str]) -> None:
    lines = [{"text": t, "timestamp": "2019-04-25T12:57:54Z", "url": "https://a"} for t in texts]
    path.write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in lines).encode()))


def save_parquet(rows, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path)
