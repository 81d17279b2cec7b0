"""Small language models of transformers, and tokens for them."""

import torch
from small import clusters, randomise
from torch import nn

from d2dmoe.config.model import BertConfig, GemmaConfig, GPT2Config
from d2dmoe.conversion import add_routers, to_moe
from d2dmoe.data.splits import CorpusSplit, TextSplit
from d2dmoe.ffn import FFN, set_activation
from d2dmoe.models.build import create_model
from d2dmoe.moe import set_selection
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find

VOCABULARY, LENGTH = 50, 12
CORPUS = {"length": LENGTH, "vocab_size": VOCABULARY, "end_of_text_id": 1}  # dataset.json's
TEXTS = {"length": LENGTH, "vocab_size": VOCABULARY, "pad_id": 0, "classes": ["a", "b", "c"]}
SIZES = {"layers": 2, "d_model": 16, "heads": 2, "d_ff": 32, "positions": LENGTH}
TINY = {
    "bert": BertConfig(architecture="bert", **SIZES),
    "gpt2": GPT2Config(architecture="gpt2", **SIZES),
    "gemma": GemmaConfig(architecture="gemma", **SIZES, head_dim=8, key_value_heads=1),
}
ABOUT_OF = {"bert": TEXTS, "gpt2": CORPUS, "gemma": CORPUS}
CAUSAL = ["gpt2", "gemma"]
EXPERTS, WIDTH = 8, 4  # of a layer, and of its router


def make_language(name: str, activation: str | None = None) -> nn.Module:
    """A dense model with random weights; activation None: the architecture's own."""
    _, model = create_model(TINY[name], ABOUT_OF[name])
    if activation:
        set_activation(model, activation)
    return randomise(model)


def split_language(model: nn.Module) -> nn.Module:
    rows = [ffn.activated.weight for ffn in find(model, FFN).values()]
    return to_moe(model, [clusters(up, EXPERTS) for up in rows])


def make_routed_language(name: str, tau: float = 0.5, kind: str = "regression") -> nn.Module:
    model = split_language(make_language(name, "relu"))
    torch.manual_seed(0)
    model = add_routers(model, kind, WIDTH).eval()
    set_selection(model, "dynamic_k", tau)
    return model


def language_spec(name: str, **changes) -> ModelSpec:
    """The spec of `make_language`; of later stages with `changes`."""
    options, _ = create_model(TINY[name], ABOUT_OF[name])
    return ModelSpec(architecture=name, options=options, data=ABOUT_OF[name], **changes)


def make_tokens(batch: int = 3, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (batch, length), generator=generator)


def make_text_split(lengths: tuple[int, ...] = (5, 12, 3, 7, 12, 4)) -> TextSplit:
    """Random texts of such lengths, with random labels."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens = make_tokens(1, int(offsets[-1]))[0].int()
    labels = make_tokens(1, len(lengths), seed=1)[0] % len(TEXTS["classes"])
    return TextSplit(tokens, offsets, labels, TEXTS)


def make_corpus_split(count: int, seed: int = 0) -> CorpusSplit:
    """Random blocks of tokens."""
    return CorpusSplit(make_tokens(count, LENGTH + 1, seed).int(), CORPUS)
