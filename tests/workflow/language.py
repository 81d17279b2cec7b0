"""The language tasks of configs/paper.yaml in a minute: the same classes, stages and options, with
fewer layers, steps, texts and variants, on local files in the forms in which the paper's come."""

import gzip
import json
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs/paper.yaml"

LENGTH = 24
SHORT = {"epochs": 1, "batch_size": 16}
SMALL = {"d_model": 96, "heads": 4, "d_ff": 384}  # of 16 experts
TOP_K = [1, 8, 16]
HALF = {"epochs": 0.5, "batch_size": 16}  # taken from the sparsification's
CHANGES = {
    "bert": {
        "data": {
            "source": "path:sources/carer",
            "subset": None,  # of the hub
            "length": LENGTH,
            "validation": 16,
            "tokenizer": {"source": "path:checkpoints/bert"},
        },
        "model": {"weights": "path:checkpoints/bert", "layers": 2} | SMALL,
        "select": {"top_k": TOP_K},
        "dense": SHORT,
        "projections": HALF,
        "sparsify": SHORT,
        "router": SHORT,
        "ztw": {"epochs": 2, "batch_size": 16},
    },
    "gpt2": {
        "data": {
            "source": "path:sources/openwebtext.parquet",
            "length": LENGTH,
            "validation": 4,
            "test": 4,
            "max_train": 32,
            "max_validation": 8,
            "max_test": 8,
            "tokenizer": {"source": "path:checkpoints/gpt2"},
        },
        "model": {"weights": "path:checkpoints/gpt2", "layers": 1} | SMALL,
        "select": {"top_k": TOP_K},
        "projections": HALF | {"accumulate": 2},
        "sparsify": SHORT | {"accumulate": 2},
        "router": {"epochs": 0.5},
        "boolq": None,
    },
    "gemma": {
        "data": {
            "source": "path:sources/c4",
            "subset": None,
            "streaming": False,
            "length": LENGTH,
            "validation": 8,
            "test": 8,
            "max_train": 64,
            "max_validation": 16,
            "max_test": 16,
            "tokenizer": {"source": "train", "vocab_size": 400},
        },
        "model": {
            "weights": "scratch",
            "layers": 2,
            "d_model": 64,
            "head_dim": 16,
            "d_ff": 512,
            "positions": 64,
        },
        "dense": SHORT,
        "projections": HALF | {"accumulate": 2, "multiple": 8},
        "sparsify": SHORT | {"accumulate": 2},
        "clustering": {"projection_expert_size": 8},
        "router": {"epochs": 0.25, "width": 16, "projection_width": 4},
        "select": {"top_k": TOP_K},
        "boolq": None,
    },
}
VARIANTS = {
    "bert": ["d2dmoe"],
    "gpt2": ["d2dmoe"],
    "gemma": ["attention"],
}
FIGURES = {
    "bert": ["tradeoff", "layer_thresholds"],
    "gpt2": ["tradeoff", "phases"],
    "gemma": ["tradeoff"],
}


def config() -> dict:
    """The paper's configuration with these changes."""
    paper = yaml.safe_load(PAPER.read_text())
    return paper | {"tasks": {name: _smaller(name, paper["tasks"][name]) for name in CHANGES}}


def save_sources(folder: Path, config: dict) -> None:
    """Write the texts and the checkpoints that the configuration names into a workspace."""
    topics = _rows("wikipedia-topics", 160)
    openings = _rows("state-of-the-union", 60)["text"].str.slice(stop=800).tolist()
    sources = folder / "sources"
    (sources / "carer").mkdir(parents=True)
    (sources / "c4").mkdir()
    topics[:120][["text", "label"]].to_parquet(sources / "carer/train.parquet")
    topics[120:][["text", "label"]].to_parquet(sources / "carer/test.parquet")
    pd.DataFrame({"text": openings}).to_parquet(sources / "openwebtext.parquet")
    for name, texts in {"train": openings[:50], "validation": openings[50:]}.items():
        rows = [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "u"} for text in texts]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (sources / f"c4/{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    save_checkpoint("bert", config, topics["text"], folder / "checkpoints/bert")
    save_checkpoint("gpt2", config, openings, folder / "checkpoints/gpt2")


def save_checkpoint(task: str, config: dict, texts, folder: Path) -> None:
    """Save a small model of the published class with random weights, and its tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    from d2dmoe.config.data import data_config
    from d2dmoe.data.tokenizer import train_tokenizer

    cfg = config["tasks"][task]
    data = {key: cfg["data"][key] for key in ("kind", "source", "length", "validation")}
    trained = {"source": "train", "vocab_size": 400}
    tokenizer = train_tokenizer(data_config(data | {"tokenizer": trained}), texts)
    size, layers = len(json.loads(tokenizer)["model"]["vocab"]), cfg["model"]["layers"]
    torch.manual_seed(0)
    if task == "bert":
        options = BertConfig(
            vocab_size=size,
            num_hidden_layers=layers,
            hidden_size=SMALL["d_model"],
            num_attention_heads=SMALL["heads"],
            intermediate_size=SMALL["d_ff"],
            pad_token_id=0,
        )
        model = BertForMaskedLM(options)
    else:
        options = GPT2Config(
            vocab_size=size,
            n_layer=layers,
            n_embd=SMALL["d_model"],
            n_head=SMALL["heads"],
            bos_token_id=0,
            eos_token_id=0,
        )
        model = GPT2LMHeadModel(options)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer)


def _smaller(name: str, task: dict) -> dict:
    task = _merged(task, CHANGES[name])
    task |= {"bases": {}, "ablations": None, "compatibility": None, "neighbours": None}
    shown = {key: task["figures"][key] for key in FIGURES[name]}
    return task | _fewer({"variants": task["variants"], "figures": shown}, VARIANTS[name])


def _fewer(suite: dict, variants: list[str]) -> dict:
    """A suite of some of its variants."""
    figures = dict(suite["figures"])
    for key, value in figures.items():
        if isinstance(value, list):
            figures[key] = [name for name in value if name in variants]
    own = {variant: suite["variants"][variant] for variant in variants}
    return {"variants": own, "figures": figures}


def _merged(options: dict, changes: dict) -> dict:
    both = dict(options)
    for key, value in changes.items():
        keep = isinstance(value, dict) and key != "tokenizer"
        both[key] = _merged(options[key], value) if keep else value
    return both


def _rows(name: str, count: int) -> pd.DataFrame:
    return pd.read_parquet(ROOT / "resources" / name / "train.parquet")[:count]
