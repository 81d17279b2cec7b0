"""What a task's dense models are measured by: simple models that need no neural network.

Texts: TF-IDF with logistic regression. Corpora: a byte-level 5-gram; losses of other vocabularies
are compared in nats per byte of text.
"""

import json
from pathlib import Path

from d2dmoe.config.data import CorpusConfig, TextsConfig
from d2dmoe.data.text_splits import load_texts
from d2dmoe.errors import DataError
from d2dmoe.io.read import read_table
from d2dmoe.text_references import ngram_loss_per_byte, tfidf_accuracy

ORDER = 5  # bytes of an n-gram
COLUMNS = ["task", "model", "seed", "metric", "value"]


def reference(
    cfg: TextsConfig | CorpusConfig, task: str, root: Path, about: Path, entries: list[dict]
) -> list[dict]:
    """Rows of `COLUMNS`: the simple model on the whole test set, and the dense models beside it.

    Args:
        cfg: the task's data.
        task: its name.
        root: the repository root.
        about: the data's dataset.json.
        entries: the dense models' test tables: path, variant, seed.

    Raises:
        UserError: the data are not in order.
    """
    description = json.loads(about.read_text())
    if cfg.kind == "texts":
        simple, metric, scale = ("TF-IDF", _tfidf(cfg, root)), "accuracy", 1.0
        column = "accuracy"
    else:
        simple, metric = (f"byte-level {ORDER}-gram", _ngram(cfg, root)), "loss_per_byte"
        column, scale = "loss", description["tokens"]["test"] / description["bytes"]["test"]
    rows = [{"task": task, "model": simple[0], "seed": "", "metric": metric, "value": simple[1]}]
    for entry in entries:
        value = scale * float(read_table(Path(entry["path"]), [column])[column].iloc[0])
        named = {"task": task, "model": entry["variant"], "seed": entry["seed"]}
        rows.append(named | {"metric": metric, "value": value})
    return rows


def _tfidf(cfg: TextsConfig, root: Path) -> float:
    train, train_labels = load_texts(cfg, "train", root)
    test, test_labels = load_texts(cfg, "test", root)
    assert train_labels is not None and test_labels is not None  # as of all labelled texts
    try:
        return tfidf_accuracy(train, train_labels.tolist(), test, test_labels.tolist())
    except ValueError as error:
        raise DataError(f"{cfg.source}: TF-IDF has nothing to count ({error}).") from error


def _ngram(cfg: CorpusConfig, root: Path) -> float:
    """In nats."""
    train, test = (
        [text.encode() for text in load_texts(cfg, part, root)[0]] for part in ("train", "test")
    )
    return ngram_loss_per_byte(train, test, ORDER)
