"""The real classes of transformers: conversion is exact, and they stay what they were."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import others_later, randomise
from small_language import (
    ABOUT_OF,
    CAUSAL,
    CORPUS,
    LENGTH,
    TEXTS,
    TINY,
    make_language,
    make_routed_language,
    make_tokens,
    split_language,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import BertForSequenceClassification, GemmaForCausalLM, GPT2LMHeadModel
from transformers.activations import ACT2FN

from d2dmoe.activations import ACTIVATIONS, torch_function
from d2dmoe.conversion import to_moe
from d2dmoe.errors import CheckpointError, ConfigError
from d2dmoe.evaluation import count_executed
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.inputs import logits_of
from d2dmoe.models.build import build_model, create_model
from d2dmoe.models.pretrained import activation_name
from d2dmoe.surgery import find

ORIGINAL = {
    "bert": BertForSequenceClassification,
    "gpt2": GPT2LMHeadModel,
    "gemma": GemmaForCausalLM,
}


def both_forms(name: str, folder, **changes) -> tuple[nn.Module, nn.Module]:
    """The class of transformers as it is, and ours from its checkpoint."""
    cls, cfg = ORIGINAL[name], TINY[name].model_copy(update=changes)
    options, _ = create_model(cfg, ABOUT_OF[name])
    theirs = randomise(cls(cls.config_class.from_dict(options)))
    theirs.save_pretrained(folder)
    pretrained = cfg.model_copy(update={"weights": f"path:{folder}"})
    return theirs, create_model(pretrained, ABOUT_OF[name])[1].eval()


@pytest.mark.parametrize("name", TINY)
def test_our_form_of_the_ffn_equals_the_original_class(name, tmp_path):
    theirs, ours = both_forms(name, tmp_path)
    ids = make_tokens()
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_dropout_falls_where_the_original_class_drops(name, tmp_path):
    theirs, ours = both_forms(name, tmp_path, dropout=0.3)
    ids, outputs = make_tokens(), []
    for model in (theirs, ours):
        torch.manual_seed(3)
        with torch.no_grad():
            outputs.append(model.train()(ids).logits)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(ours(ids).logits, outputs[0], atol=0.1)  # it does drop


@pytest.mark.parametrize("activation", others_later([None, *ACTIVATIONS], [None, "relu"]))
@pytest.mark.parametrize("name", TINY)
def test_all_experts_on_equals_dense(name, activation):
    model = make_language(name, activation)
    inputs = {"input_ids": make_tokens()}
    with torch.no_grad():
        dense = logits_of(model, inputs)
        moe = logits_of(split_language(model), inputs)
    torch.testing.assert_close(moe, dense, rtol=0, atol=1e-5)


@pytest.mark.workflow
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_all_experts_on_equals_dense_at_base_size(name):
    """Blocks of width 768, FFNs of 3,072, random weights; random experts, which are as good a
    test as clustered ones and cost nothing."""
    sizes = {"layers": 3, "d_model": 768, "heads": 12, "d_ff": 3072, "positions": 512}
    cfg = TINY[name].model_copy(update=sizes)
    _, model = create_model(cfg, ABOUT_OF[name])
    model.eval()
    inputs = {"input_ids": make_tokens(1)}
    with torch.no_grad():
        dense = logits_of(model, inputs)
        ups = [ffn.up.weight for ffn in find(model, FFN).values()]
        to_moe(model, [assign_neurons(up, 128, "random", i) for i, up in enumerate(ups)])
        moe = logits_of(model, inputs)
    torch.testing.assert_close(moe, dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_the_options_rebuild_the_model(name):
    options, model = create_model(TINY[name], ABOUT_OF[name])
    rebuilt = build_model(name, options)
    assert type(rebuilt) is type(model) is ORIGINAL[name]
    rebuilt.load_state_dict(model.state_dict())
    ids = make_tokens()
    torch.testing.assert_close(rebuilt.eval()(ids).logits, model.eval()(ids).logits)


def test_padding_changes_no_logits_and_does_not_count():
    model = make_routed_language("bert")
    ids, short = make_tokens(1), 7
    mask = torch.ones(1, LENGTH, dtype=torch.int64)
    mask[:, short:] = 0
    with torch.no_grad(), count_executed(model) as padded:
        logits = model(input_ids=ids, attention_mask=mask).logits
    with torch.no_grad(), count_executed(model) as alone:
        expected = model(input_ids=ids[:, :short]).logits
    torch.testing.assert_close(logits, expected)
    for one, other in zip(padded.values(), alone.values(), strict=True):
        assert one.sums[0] == short and one.sums == other.sums


@pytest.mark.parametrize("tau", others_later([0.0, 0.5], [0.5]))
@pytest.mark.parametrize("name", CAUSAL)
def test_generation_with_a_cache_equals_that_without(name, tau):
    model = make_routed_language(name, tau)
    prompt = make_tokens(2, 4)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), use_cache=True, **options
    )
    uncached = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), use_cache=False, **options
    )
    assert cached.shape == (2, 10) and torch.equal(cached, uncached)


@pytest.mark.parametrize("name", CAUSAL)
def test_left_padded_prompts_generate_what_they_do_alone(name):
    model = make_routed_language(name)
    prompt = make_tokens(1, 4)
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.int64), prompt], 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 2:], alone)


@pytest.mark.workflow
@pytest.mark.parametrize("name", TINY)
def test_the_dense_equivalent_path_compiles_whole(name):
    model = split_language(make_language(name, "relu"))
    inputs = {"input_ids": make_tokens()}
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


def test_the_tied_head_stays_tied():
    model = split_language(make_language("gpt2"))
    assert model.lm_head.weight is model.transformer.wte.weight


def saved(name: str, folder) -> str:
    cls = ORIGINAL[name]
    options, _ = create_model(TINY[name], ABOUT_OF[name])
    cls(cls.config_class.from_dict(options)).save_pretrained(folder)
    return f"path:{folder}"


def wanting(name: str, **changes):
    return TINY[name].model_copy(update=changes)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    weights = saved("gpt2", tmp_path)
    with pytest.raises(
        CheckpointError, match="architecture 'gpt2', but model.architecture is bert"
    ):
        create_model(wanting("bert", weights=weights), TEXTS)


def test_a_checkpoint_of_an_undescribed_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="'llama'.*Described are bert, gpt2, gemma."):
        create_model(wanting("gpt2", weights=f"path:{tmp_path}"), CORPUS)


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path):
    weights = saved("gemma", tmp_path)
    with pytest.raises(CheckpointError, match=r"intermediate_size 32 \(configured: 64\)"):
        create_model(wanting("gemma", weights=weights, d_ff=64), CORPUS)


def test_an_undescribed_activation_is_refused(tmp_path):
    weights = saved("gpt2", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"gelu_new"', '"mish"'))
    described = ", ".join(alias for about in ACTIVATIONS.values() for alias in about.aliases)
    message = f"activation 'mish' is not described; described are {described}"
    with pytest.raises(CheckpointError, match=message):
        create_model(wanting("gpt2", weights=weights), CORPUS)


ALIASES = [
    (alias, name)
    for name, about in ACTIVATIONS.items()
    for alias in about.aliases
    if alias in ACT2FN  # of all versions of transformers, the installed one
]


@pytest.mark.parametrize(("alias", "name"), ALIASES)
def test_every_alias_of_an_activation_is_the_function_that_transformers_calls_so(alias, name):
    assert activation_name(alias) == name
    x = torch.linspace(-6, 6, 97)
    torch.testing.assert_close(torch_function(name)(x), ACT2FN[alias](x))


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no config.json"):
        create_model(wanting("bert", weights=f"path:{tmp_path}"), TEXTS)


def test_pickled_weights_are_refused(tmp_path):
    weights = saved("gpt2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        create_model(wanting("gpt2", weights=weights), CORPUS)


def test_truncated_weights_are_refused(tmp_path):
    weights = saved("gpt2", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        create_model(wanting("gpt2", weights=weights), CORPUS)


def without(folder, part: str) -> str:
    """Take a tensor out of a saved checkpoint, the first whose name has the part; its name."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if part in key)
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})
    return name


@pytest.mark.parametrize(
    ("name", "part"),
    [("bert", "intermediate.dense.bias"), ("gpt2", "1.mlp.c_fc.weight"), ("gemma", "up_proj")]
    + [("bert", "word_embeddings"), ("gpt2", "wte"), ("gemma", "embed_tokens")],
)
def test_weights_that_lack_a_tensor_are_refused(tmp_path, name, part):
    weights = saved(name, tmp_path)
    lacking = without(tmp_path, part)
    with pytest.raises(CheckpointError, match=f"does not fit the configured .*{lacking}"):
        create_model(wanting(name, weights=weights), ABOUT_OF[name])


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    weights = saved("gpt2", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.0.mlp.c_fc.bias"] = torch.ones(3)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="does not fit .* 1 tensors .*h.0.mlp.c_fc.bias"):
        create_model(wanting("gpt2", weights=weights), CORPUS)


@pytest.mark.parametrize("part", ["classifier.weight", "pooler.dense.weight", None])
def test_what_a_task_trains_itself_may_be_fresh_and_all_else_is_the_checkpoints(tmp_path, part):
    """Another number of classes, and checkpoints of masked language models."""
    weights = saved("bert", tmp_path)
    about = TEXTS | ({} if part else {"classes": ["a", "b", "c", "d", "e"]})
    if part:
        without(tmp_path, part)
    theirs = load_file(tmp_path / "model.safetensors")
    _, ours = create_model(wanting("bert", weights=weights), about)
    assert ours.classifier.out_features == len(about["classes"])
    attention = "bert.encoder.layer.1.attention.self.query.weight"
    assert torch.equal(ours.state_dict()[attention], theirs[attention])
    up = ours.bert.encoder.layer[1].intermediate.up.weight
    assert torch.equal(up, theirs["bert.encoder.layer.1.intermediate.dense.weight"])


@pytest.mark.parametrize("name", TINY)
def test_checkpoints_of_the_body_alone_are_understood(tmp_path, name):
    """As GPT-2's on the hub: without a head, and without the head's prefix in the names."""
    cls = ORIGINAL[name]
    options, _ = create_model(TINY[name], ABOUT_OF[name])
    body = randomise(cls(cls.config_class.from_dict(options))).base_model
    body.save_pretrained(tmp_path)
    _, ours = create_model(wanting(name, weights=f"path:{tmp_path}"), ABOUT_OF[name])
    ids = make_tokens()
    with torch.no_grad():
        found = ours.eval().base_model(ids).last_hidden_state
        torch.testing.assert_close(found, body(ids).last_hidden_state, rtol=0, atol=1e-6)


def tokenizer_of(folder, words: list[str]) -> str:
    """Save a tokenizer; the digest of its vocabulary."""
    from d2dmoe.data.tokenizer import vocabulary_digest

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, words[0]))
    tokenizer.save(str(folder / "tokenizer.json"))
    return vocabulary_digest(tokenizer)


def test_a_vocabulary_that_is_not_the_checkpoints_is_refused(tmp_path):
    weights = saved("gpt2", tmp_path)
    other = tokenizer_of(tmp_path, ["a", "c"])
    own = tokenizer_of(tmp_path, ["a", "b"])
    create_model(wanting("gpt2", weights=weights), CORPUS | {"vocabulary_sha256": own})
    with pytest.raises(ConfigError, match="another vocabulary than .*tokenizer.json. Set data.tok"):
        create_model(wanting("gpt2", weights=weights), CORPUS | {"vocabulary_sha256": other})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 60}, "the tokenizer has 60 tokens, but .* knows only 50"),
        ({"end_of_text_id": 7}, "end_of_text_id is 7, but .* has eos_token_id = 1"),
    ],
)
def test_a_tokenizer_that_is_not_the_checkpoints_is_refused(tmp_path, change, message):
    weights = saved("gpt2", tmp_path)
    with pytest.raises(ConfigError, match=message):
        create_model(wanting("gpt2", weights=weights), CORPUS | change)


def test_samples_longer_than_the_models_positions_are_refused(tmp_path):
    weights = saved("bert", tmp_path)
    with pytest.raises(ConfigError, match="length = 13 tokens exceeds the 12 positions"):
        create_model(wanting("bert", weights=weights), TEXTS | {"length": 13})
