"""Laws of saved models: what is loaded is what was saved, to the bit, or nothing is loaded."""

import copy
import filecmp
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from small import others_later
from small_language import language_spec, make_language
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import MLPBlock
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.t5.modeling_t5 import T5LayerFF

import d2dmoe
from d2dmoe.api.pretrained import from_pretrained, push_to_hub, save_pretrained
from d2dmoe.checkpoint import save_model
from d2dmoe.conversion import add_routers, to_moe
from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.huggingface import attach
from d2dmoe.layers import Bypass, describe
from d2dmoe.moe import MoE, set_operating_point
from d2dmoe.surgery import find, replace

torch.set_num_threads(1)
IDS = torch.arange(2, 14).reshape(2, 6)
POINTS = [("dynamic_k", 0.3), ("top_k", 3), ("coverage", 0.7), ("dynamic_k", 0.9)]  # by layer


def linear(conv: nn.Module) -> nn.Linear:
    """A Conv1D of GPT-2 as a linear map."""
    layer = nn.Linear(*conv.weight.shape)
    layer.weight, layer.bias = nn.Parameter(conv.weight.detach().T.contiguous()), conv.bias
    return layer


def llama(tie: bool = False) -> nn.Module:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=20, tie_word_embeddings=tie,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    return replace(
        model, LlamaMLP, lambda mlp, _: FFN(mlp.up_proj, mlp.down_proj, "silu", mlp.gate_proj)
    )


def gpt2() -> nn.Module:
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20))
    return replace(
        model, GPT2MLP, lambda mlp, _: FFN(linear(mlp.c_fc), linear(mlp.c_proj), "gelu_tanh")
    )


def bert() -> nn.Module:
    """Its two maps are in different modules: one gets the FFN, what it computes is bypassed."""
    config = BertConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=20,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    for layer in find(model, BertLayer).values():
        layer.intermediate.dense = FFN(layer.intermediate.dense, layer.output.dense, "gelu")
        layer.set_submodule("intermediate.intermediate_act_fn", Bypass())
        layer.set_submodule("output.dense", Bypass())
    return model


def t5() -> nn.Module:
    model = T5ForConditionalGeneration(
        T5Config(
            d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2, vocab_size=20,
            decoder_start_token_id=0,
        )
    )  # fmt: skip
    for layer in find(model, T5LayerFF).values():
        ffn = layer.DenseReluDense
        layer.DenseReluDense = FFN(ffn.wi, ffn.wo, "relu")
    return model


def split(model: nn.Module) -> nn.Module:
    """With experts and routers, and another operating point in each layer."""
    ffns = find(model, FFN).values()
    to_moe(model, [assign_neurons(ffn.activated.weight, 8, "kmeans", 0) for ffn in ffns])
    add_routers(model, "regression", 6)
    for moe, (rule, value) in zip(find(model, MoE).values(), POINTS, strict=False):
        moe.selection.rule, moe.selection.value = rule, value
    return model.eval()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def logits(model: nn.Module, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, **inputs).logits


def equal(a: nn.Module, b: nn.Module, **inputs) -> bool:
    return torch.equal(logits(a, **inputs), logits(b, **inputs))


def points(model: nn.Module) -> list[tuple[str, float]]:
    return [moe.operating_point for moe in find(model, MoE).values()]


def same_files(a: Path, b: Path) -> bool:
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    return filecmp.cmpfiles(a, b, names, shallow=False)[0] == names


def edit(folder: Path, change) -> None:
    """Change what a folder's configuration says of the converted layers."""
    path = folder / "config.json"
    about = json.loads(path.read_text())
    change(about["quantization_config"])
    path.write_text(json.dumps(about))


HEADS = {llama: AutoModelForCausalLM, gpt2: AutoModelForCausalLM, bert: AutoModelForMaskedLM}


@pytest.mark.parametrize("make", others_later(HEADS, [*HEADS][:1]))
@pytest.mark.parametrize("converted", [split, nn.Module.eval], ids=["experts", "FFNs"])
def test_transformers_loads_what_it_saved(make, converted, tmp_path):
    model = attach(converted(make()))
    model.save_pretrained(tmp_path / "a")
    loaded = HEADS[make].from_pretrained(tmp_path / "a")
    assert equal(loaded, model) and points(loaded) == points(model)
    assert [type(m) for m in loaded.modules()] == [type(m) for m in model.modules()]
    loaded.save_pretrained(tmp_path / "b")
    assert same_files(tmp_path / "a", tmp_path / "b")


def test_a_class_is_told_by_a_model(tmp_path):
    model = split(llama())
    save_pretrained(model, tmp_path)
    path = tmp_path / "config.json"
    about = json.loads(path.read_text()) | {"architectures": ["Somebodys"]}
    path.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="Somebodys"):
        from_pretrained(tmp_path)
    assert equal(from_pretrained(tmp_path, llama()), model)


def test_weights_that_transformers_renames_are_found_again(tmp_path):
    """Files of LLaVA have other names than its modules."""
    text = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=20,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=19)
    model = LlavaForConditionalGeneration(config)
    model = split(
        replace(
            model, LlamaMLP, lambda mlp, _: FFN(mlp.up_proj, mlp.down_proj, "silu", mlp.gate_proj)
        )
    )
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert equal(loaded, model) and points(loaded) == points(model)


def test_a_dense_model_of_a_converted_ones_configuration_is_not_taken_for_it(tmp_path):
    save_pretrained(split(llama()), tmp_path / "a")
    config = AutoConfig.from_pretrained(tmp_path / "a")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "b")
    with pytest.raises(CheckpointError, match="missing"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "b")


def test_an_encoder_decoder_is_loaded(tmp_path):
    model = split(t5())
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert equal(loaded, model, decoder_input_ids=IDS) and points(loaded) == points(model)


def test_what_others_put_into_a_model_is_not_lost_in_silence(tmp_path):
    """As adapters, whose tensors the class has not: it would make fresh ones of its own."""
    model = split(bert())
    head = model.bert.encoder.layer[0].attention.self
    head.query = nn.Sequential(head.query)
    with pytest.raises(UserError, match=r"query\.0\.bias and 1 more .* adapters"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("make", others_later(HEADS, [*HEADS][:1]))
def test_the_model_without_its_head_is_the_same(make, tmp_path):
    model = split(make())
    model.save_pretrained(tmp_path / "whole")
    model.base_model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        expected = model.base_model(input_ids=IDS)[0]
        for folder in ("whole", "base"):
            loaded = AutoModel.from_pretrained(tmp_path / folder)
            assert torch.equal(loaded(input_ids=IDS)[0], expected)
        again = HEADS[make].from_pretrained(tmp_path / "base")  # with a fresh head
        assert torch.equal(again.base_model(input_ids=IDS)[0], expected)


def test_another_head_is_fresh_and_the_layers_are_not(tmp_path):
    model = split(bert())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        hidden = loaded.bert(input_ids=IDS)[0]
        assert torch.equal(hidden, model.bert(input_ids=IDS)[0])


@pytest.mark.workflow
def test_new_processes_load_it_and_refuse_it_without_the_package(tmp_path):
    """Both orders of importing; with neither import does transformers lose its voice."""
    model = split(llama())
    save_pretrained(model, tmp_path)
    script = f"""
import sys
from transformers import AutoModelForCausalLM
from transformers.utils import logging
import torch
logging.set_verbosity_warning()
try:
    AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})
except RuntimeError:
    pass
else:
    sys.exit("loaded with fresh weights")
import d2dmoe
import d2dmoe.models.pretrained
assert logging.get_verbosity() == logging.WARNING and logging.is_progress_bar_enabled()
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})
torch.save(model(torch.arange(2, 14).reshape(2, 6)).logits, {str(tmp_path / "logits.pt")!r})
"""
    quiet = ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS")  # jobs set them
    own = {name: value for name, value in os.environ.items() if name not in quiet}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=own)
    assert run.returncode == 0, run.stderr
    assert "Unknown quantization type, got d2dmoe" in run.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_importing_the_package_imports_neither_torch_nor_transformers():
    script = (
        "import d2dmoe, sys; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_shards_hold_the_same_model(tie, tmp_path):
    model = split(llama(tie))
    save_pretrained(model, tmp_path, max_shard_size=3000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert equal(loaded, model)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tie


def test_a_model_in_bf16_stays_one_and_others_become_one(tmp_path):
    model = split(llama())
    save_pretrained(model, tmp_path / "float32")
    low = copy.deepcopy(model).to(torch.bfloat16)
    save_pretrained(low, tmp_path / "bfloat16")
    for name, dtype in (("bfloat16", None), ("float32", torch.bfloat16)):
        loaded = from_pretrained(tmp_path / name, dtype=dtype)
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        assert equal(loaded, low)


def test_a_device_map_is_followed(tmp_path):
    model = split(llama())
    save_pretrained(model, tmp_path)
    assert equal(AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu"), model)


def test_the_configuration_says_the_present_operating_point(tmp_path):
    model = split(llama())
    set_operating_point(model, "top_k", 5)
    layers = model.config.to_dict()["quantization_config"]["layers"]
    assert {(layer["rule"], layer["value"]) for layer in layers.values()} == {("top_k", 5)}
    json.loads(model.config.to_json_string())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_saved_with_their_own_operating_point(copied, tmp_path):
    model = split(llama())
    other = copied(model)
    set_operating_point(other, "top_k", 5)
    other.save_pretrained(tmp_path)
    assert set(points(AutoModelForCausalLM.from_pretrained(tmp_path))) == {("top_k", 5)}
    assert points(model) == POINTS[:2]
    assert copied(model.config).quantization_config == model.config.quantization_config


def test_a_loaded_model_casts_and_trains_like_any_other(tmp_path):
    model = split(llama())
    save_pretrained(model, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    copy.deepcopy(loaded).half().float()
    before = loaded.model.layers[0].mlp.up.detach().clone()
    options = TrainingArguments(
        str(tmp_path / "out"), max_steps=1, save_steps=1, report_to=[], use_cpu=True,
        disable_tqdm=True, learning_rate=0.1, seed=0,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    trainer = Trainer(loaded, options, train_dataset=rows)
    trainer.train()
    assert not torch.equal(loaded.model.layers[0].mlp.up, before)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-1")
    assert equal(saved, loaded.eval()) and points(saved) == points(model)


@dataclass
class Damage:
    """Something wrong with a folder, and what the error must name."""

    change: object
    named: str


def layer(change):
    return lambda config: change(config["layers"]["model.layers.0.mlp"])


DAMAGES = {
    "value": Damage(layer(lambda it: it.update(value=1.5)), "1.5"),
    "no number": Damage(layer(lambda it: it.update(value="nan")), "nan"),
    "too many experts": Damage(layer(lambda it: it.update(rule="top_k", value=9)), "9"),
    "rule": Damage(layer(lambda it: it.update(rule="best_k")), "best_k"),
    "activation": Damage(layer(lambda it: it.update(activation="mish")), "mish"),
    "router": Damage(layer(lambda it: it["router"].update(kind="oracle")), "oracle"),
    "shape": Damage(layer(lambda it: it.update(d_ff=64)), "mlp.down has the shape"),
    "experts": Damage(layer(lambda it: it.update(num_experts=4)), "mlp.down has the shape"),
    "field": Damage(layer(lambda it: it.update(shared_experts=1)), "shared_experts"),
    "lacks": Damage(layer(lambda it: it.pop("d_model")), "d_model"),
    "name": Damage(lambda it: it["layers"].update(nowhere=it["layers"].popitem()[1]), "nowhere"),
    "layers": Damage(lambda it: it.pop("layers"), "layers"),
}  # fmt: skip


LOADERS = others_later(
    [from_pretrained, AutoModelForCausalLM.from_pretrained], [AutoModelForCausalLM.from_pretrained]
)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
@pytest.mark.parametrize("load", LOADERS)
def test_a_description_that_does_not_fit_is_one_error(damage, load, tmp_path):
    save_pretrained(split(llama()), tmp_path)
    edit(tmp_path, damage.change)
    with pytest.raises(CheckpointError, match=damage.named):
        load(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.mlp.up", "model.layers.0.mlp.router.layers.2.bias", "model.norm.weight"],
)
@pytest.mark.parametrize("load", [from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_missing_tensors_are_never_fresh_ones(name, load, tmp_path):
    save_pretrained(split(llama()), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path)


@pytest.mark.parametrize("load", [from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_a_truncated_file_is_one_error(load, tmp_path):
    save_pretrained(split(llama()), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load(tmp_path)


def test_a_layer_that_is_missing_is_an_error_in_any_class(tmp_path):
    save_pretrained(split(llama()), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="layers.1.mlp.up"):
        AutoModel.from_pretrained(tmp_path)


def test_what_was_not_converted_is_refused(tmp_path):
    dense = LlamaForCausalLM(LlamaConfig(hidden_size=8, num_attention_heads=1, vocab_size=9,
                                         num_hidden_layers=1, intermediate_size=8))  # fmt: skip
    with pytest.raises(UserError, match="Nothing in this LlamaForCausalLM was converted"):
        save_pretrained(dense, tmp_path / "a")
    dense.save_pretrained(tmp_path / "b")
    with pytest.raises(CheckpointError, match="no converted model"):
        from_pretrained(tmp_path / "b")
    with pytest.raises(CheckpointError, match="no folder here"):
        from_pretrained(tmp_path / "c")


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def test_the_tokenizer_comes_along_given_or_from_the_base(tmp_path):
    model = split(llama())
    save_pretrained(model, tmp_path / "given", tokenizer=tokenizer())
    loaded = from_pretrained(tmp_path / "given")
    save_pretrained(loaded, tmp_path / "again")
    for name in ("given", "again"):
        found = AutoTokenizer.from_pretrained(tmp_path / name)
        assert found("b b a", return_token_type_ids=False)["input_ids"] == [1, 1, 0]
        assert (tmp_path / name / "generation_config.json").is_file()


def test_a_card_says_what_is_known(tmp_path):
    model = split(llama())
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    model.config.name_or_path = str(base)
    evaluation = {"accuracy": 0.8125, "flops_ratio": 0.25, "layers": {"a": 1}}
    save_pretrained(model, tmp_path / "saved", evaluation=evaluation, base_model="some/base")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model == "some/base"
    assert card.data.library_name == "transformers" and "d2dmoe" in card.data.tags
    for said in ("| Accuracy | 0.8125 |", "τ = 0.3", "k = 3", "8 experts", "2310.04361"):
        assert said in card.text
    assert str(tmp_path) not in card.content
    loaded = from_pretrained(tmp_path / "saved")
    save_pretrained(set_operating_point(loaded, "top_k", 2), tmp_path / "again")
    card = ModelCard.load(tmp_path / "again" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model == "some/base"
    assert "k = 2, in every converted layer" in card.text and "Not measured." in card.text


def test_a_card_loads_its_model_as_it_says(tmp_path, monkeypatch):
    save_pretrained(split(llama()), tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) == 3
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code, found)
    assert points(found["model"]) == POINTS[:2]


class Hub:
    """What the hub would be told."""

    def __init__(self, refuses: bool = False):
        self.refuses, self.made, self.files = refuses, {}, {}

    def create_repo(self, repo_id, **options):
        if self.refuses:
            raise OSError("403 Forbidden")
        self.made = {"repo_id": repo_id} | options

    def upload_folder(self, *, folder_path, **options):
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return f"https://hub/{options['repo_id']}/commit"


def test_a_model_is_pushed_with_its_card_and_in_private(tmp_path):
    model, hub = split(llama()), Hub()
    assert (
        push_to_hub(model, "me/mine", api=hub, tokenizer=tokenizer())
        == "https://hub/me/mine/commit"
    )
    assert hub.made == {"repo_id": "me/mine", "private": True, "exist_ok": True}
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= hub.files.keys()
    assert b'from_pretrained("me/mine")' in hub.files["README.md"]
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert equal(AutoModelForCausalLM.from_pretrained(tmp_path), model)
    with pytest.raises(UserError, match="me/mine cannot be written"):
        push_to_hub(model, "me/mine", api=Hub(refuses=True))


def timm_vit(**options) -> nn.Module:
    model = timm.create_model("test_vit", num_classes=5, **options)
    return replace(model, timm.layers.Mlp, lambda mlp, _: FFN(mlp.fc1, mlp.fc2, "gelu"))


def torchvision_vit(**options) -> nn.Module:
    model = VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
        num_classes=5, **options,
    )  # fmt: skip
    nn.init.normal_(model.heads.head.weight)  # a fresh one is zero
    return replace(model, MLPBlock, lambda mlp, _: FFN(mlp[0], mlp[3], "gelu"))


class Net(nn.Module):
    """Somebody's own model, with one matrix under two names."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(3072, width))
        self.ffn: nn.Module = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width))
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(self.ffn(self.inner(x))))


def own(width: int = 48) -> nn.Module:
    model = Net(width)
    model.ffn = FFN(model.ffn[0], model.ffn[2], "relu")
    return model


def same_outputs(a: nn.Module, b: nn.Module) -> bool:
    size = getattr(getattr(a, "patch_embed", None), "img_size", (32, 32))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = a.eval()(images.to(next(a.parameters()).dtype))
        return outputs.std() > 0 and torch.equal(outputs, b(images.to(next(b.parameters()).dtype)))


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (timm_vit, {}),
        (timm_vit, {"img_size": 64, "global_pool": "avg", "depth": 2, "embed_dim": 32}),
        (timm_vit, {"class_token": False, "global_pool": "avg"}),
        (torchvision_vit, {"dropout": 0.1, "representation_size": 8}),
    ],
)
@pytest.mark.parametrize("converted", [split, lambda it: it], ids=["experts", "FFNs"])
def test_models_of_timm_and_torchvision_need_no_words(make, options, converted, tmp_path):
    model = converted(make(**options))
    save_pretrained(model, tmp_path / "a")
    loaded = from_pretrained(tmp_path / "a")
    assert not loaded.training
    assert same_outputs(model, loaded) and points(loaded) == points(model)
    save_pretrained(loaded, tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert filecmp.cmp(tmp_path / "a" / name, tmp_path / "b" / name, shallow=False)


def test_options_that_cannot_be_read_from_a_model_are_asked_for(tmp_path):
    model = split(timm_vit(proj_drop_rate=0.1))
    with pytest.warns(UserWarning, match="factory="):
        save_pretrained(model, tmp_path)
    with pytest.raises(CheckpointError, match="model="):
        from_pretrained(tmp_path)
    options = {"model_name": "test_vit", "num_classes": 5, "proj_drop_rate": 0.1}
    save_pretrained(model, tmp_path, factory="timm:create_model", options=options)
    assert same_outputs(model, from_pretrained(tmp_path))
    with pytest.raises(UserError, match="does not build this VisionTransformer"):
        save_pretrained(
            model, tmp_path, factory="timm:create_model", options=options | {"depth": 1}
        )


@pytest.mark.parametrize("factory", [None, f"{__name__}:Net"])
def test_a_folder_runs_no_foreign_code(factory, tmp_path):
    """A model of one's own comes back into a fresh dense one."""
    model = split(own())
    save_pretrained(model, tmp_path, factory=factory)
    with pytest.raises(CheckpointError, match="model="):
        from_pretrained(tmp_path)
    dense = Net()
    loaded = from_pretrained(tmp_path, model=dense)
    assert loaded is dense and same_outputs(model, loaded) and points(loaded) == points(model)
    assert loaded.first.weight is loaded.second.weight


@pytest.fixture(scope="module")
def saved_vit(tmp_path_factory) -> dict:
    """The configuration of a saved model of timm."""
    folder = save_pretrained(split(timm_vit()), tmp_path_factory.mktemp("vit"))
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        ("os:system", {"command": "true"}),
        ("timm:create_model", {"model_name": "test_vit", "checkpoint_path": "a.pth"}),
        ("timm:create_model", {"model_name": "test_vit", "pretrained": True}),
        ("timm:create_model", {"model_name": "hf-hub:somebody/something"}),
        ("timm.models:load_checkpoint", {}),
        ("torchvision.models:get_model", {"name": "vit_b_16", "weights": "DEFAULT"}),
        ("torchvision.models:get_model", {"name": "nowhere"}),
        ("transformers:pipeline", {"task": "x", "trust_remote_code": True}),
        (["timm:create_model"], {"model_name": "test_vit"}),
        ("timm:create_model", ["test_vit"]),
        ("timm:create_model", {"model_name": ["test_vit"]}),
        ("timm:create_model", {"model_name": "test_vit", "colour": 3}),
    ],
)
def test_only_harmless_calls_are_made(factory, options, saved_vit, monkeypatch):
    about = saved_vit | {"factory": factory, "options": options}
    monkeypatch.setattr("d2dmoe.api.pretrained.read_config", lambda *_: about)
    with pytest.raises(CheckpointError):
        from_pretrained(".")


@pytest.mark.workflow
def test_shards_dtypes_and_mixtures_of_dtypes_come_back(tmp_path):
    model = split(timm_vit()).to(torch.bfloat16)
    model.norm.float()
    save_pretrained(model, tmp_path, max_shard_size=100_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = from_pretrained(tmp_path)
    theirs, ours = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(t, ours[n]) and t.dtype == ours[n].dtype for n, t in theirs.items())
    assert {p.dtype for p in from_pretrained(tmp_path, dtype=torch.float16).parameters()} == {
        torch.float16
    }
    (tmp_path / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    sorted(tmp_path.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(CheckpointError, match="missing"):
        from_pretrained(tmp_path)


def test_a_dense_model_of_another_size_is_refused(tmp_path):
    save_pretrained(split(own()), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        from_pretrained(tmp_path, model=Net(width=40))
    with pytest.raises(CheckpointError, match="does not fit"):
        from_pretrained(tmp_path, model=nn.Linear(3, 3))


class Compiled(nn.Module):
    """What torch.compile returns, without its seconds."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self._orig_mod = model


def test_models_in_wrappers_are_saved_as_themselves(tmp_path):
    model = split(own())
    save_pretrained(Compiled(nn.DataParallel(model)), tmp_path)
    assert same_outputs(model, from_pretrained(tmp_path, model=Net()))


def test_converted_attentions_come_back(tmp_path):
    """Their maps lie in modules that the class does not have, fused ones taken apart."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64)
    model, ids = GPT2LMHeadModel(config), torch.randint(64, (4, 12))
    batches, roles = [{"input_ids": ids}] * 2, ("q", "v", "o")
    d2dmoe.imitate_projections(model, batches, steps=1, lr=0.01, maps=roles)
    d2dmoe.convert(model, expert_size=8, attention=roles)
    d2dmoe.train_routers(model, batches, steps=1, width=8)
    d2dmoe.set_operating_point(model, "dynamic_k", 0.5)
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert describe(loaded) == describe(model)


class Adapted(nn.Module):
    """A linear map with an adapter of low rank, as PEFT's."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer, self.down = base, nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Wrapper(nn.Module):
    """Somebody's class around a model, as PEFT's are."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def get_base_model(self) -> nn.Module:
        return self.inner

    def forward(self, **inputs):
        return self.inner(**inputs)


def test_a_model_with_adapters_is_saved_when_they_are_merged(tmp_path):
    model = split(llama())
    attention = model.model.layers[0].self_attn
    plain, attention.q_proj = attention.q_proj, Adapted(attention.q_proj)
    for either in (model, Wrapper(model)):
        with pytest.raises(UserError, match="q_proj has an adapter.*merge_and_unload"):
            save_pretrained(either, tmp_path / "a")
    attention.q_proj = plain
    save_pretrained(Wrapper(model), tmp_path / "a")
    assert equal(from_pretrained(tmp_path / "a"), model)


def test_a_model_that_another_surrounds_saves_what_it_is(tmp_path):
    inner = LlamaForCausalLM(llama().config)
    outer = Wrapper(inner)
    d2dmoe.convert(outer, 8, example={"input_ids": IDS})
    assert find(inner, MoE)
    inner.save_pretrained(tmp_path)
    assert equal(AutoModelForCausalLM.from_pretrained(tmp_path), inner)


def test_a_model_of_the_workflow_is_loaded_from_its_folder(tmp_path):
    model = make_language("bert", "relu")
    save_model(tmp_path / "model.safetensors", model, language_spec("bert", activation="relu"))
    for name in (tmp_path, tmp_path / "model.safetensors"):
        loaded = from_pretrained(str(name))
        assert not loaded.training and describe(loaded) == describe(model)
        for key, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor)
    assert (
        next(from_pretrained(tmp_path, dtype=torch.bfloat16).parameters()).dtype is torch.bfloat16
    )
    with pytest.raises(UserError, match="revision"):
        from_pretrained(tmp_path, revision="main")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    with pytest.raises(CheckpointError, match="model.safetensors"):
        from_pretrained(tmp_path)
