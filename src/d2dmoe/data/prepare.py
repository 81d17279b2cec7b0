"""Split a dataset once, in the same way for every seed, method and stage that will read it.

Validation samples come out of the training set; test samples are the source's own, or, for a corpus
without any, come out of the training set too. The split depends on the source and a split seed
only, never on a training seed.
"""

import json
from pathlib import Path
from typing import Any

from d2dmoe.config.data import CorpusConfig, ImagesConfig, TextsConfig
from d2dmoe.data.images import prepare_images
from d2dmoe.data.tokenizer import load_tokenizer, vocabulary_digest
from d2dmoe.data.tokens import prepare_corpus, prepare_texts
from d2dmoe.io.files import sha256, write_atomically
from d2dmoe.io.header import check_digest
from d2dmoe.io.tensors import save_tensors


def prepare(
    cfg: ImagesConfig | TextsConfig | CorpusConfig,
    root: Path,
    folder: Path,
    tokenizer: Path | None = None,
    seed: int = 0,
) -> None:
    """Write train, validation and test.safetensors and dataset.json into `folder`.

    What the files hold is said where it is made: `prepare_images`, `prepare_texts` and
    `prepare_corpus`. The same set, config, tokenizer and seed give the same bytes.

    Args:
        cfg: the dataset and its sizes.
        root: the repository root, where resources/ lies.
        folder: where to write; dataset.json comes last, when all else is there.
        tokenizer: what `make_tokenizer` wrote; images need none.
        seed: of the choice of validation samples; not a training seed.

    Raises:
        DataError: the source or the tokenizer is missing, damaged or of another form.
        ConfigError: the sizes asked for do not fit the source.
    """
    about: dict[str, Any] = {"kind": cfg.kind, "source": cfg.source}
    if cfg.kind == "images":
        splits, described = prepare_images(cfg, root, seed)
    else:
        loaded = load_tokenizer(cfg, tokenizer)
        assert tokenizer is not None  # refused by then
        if cfg.kind == "texts":
            splits, described = prepare_texts(cfg, root, loaded, seed)
        else:
            splits, described = prepare_corpus(cfg, root, loaded, seed, folder)
        about |= {"tokenizer": sha256(tokenizer), "vocabulary_sha256": vocabulary_digest(loaded)}
    for name, tensors in splits.items():
        save_tensors(folder / f"{name}.safetensors", tensors)
    about |= described
    about["sha256"] = {name: check_digest(folder / f"{name}.safetensors") for name in splits}
    text = json.dumps(about, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / "dataset.json", lambda path: path.write_text(text))
