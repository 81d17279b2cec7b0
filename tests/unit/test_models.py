"""Laws of the dense models: equal to torchvision's, and its weights fit or are refused."""

import pytest
import torch
from safetensors.torch import save_file
from small import ABOUT, MODEL, OPTIONS, SIZE, make_inputs, randomise
from torchvision.models import vit_b_16
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from d2dmoe.config.model import ViTConfig
from d2dmoe.errors import CheckpointError, UnknownName
from d2dmoe.ffn import FFN
from d2dmoe.models import ARCHITECTURES
from d2dmoe.models.build import build_model, create_model
from d2dmoe.surgery import find, replace

DROPPING = MODEL.model_copy(update={"dropout": 0.3})


def original(cfg: ViTConfig = MODEL, num_classes: int = 3) -> VisionTransformer:
    """torchvision's model of the same dimensions, with weights that are nowhere zero."""
    stem = [ConvStemConfig(c, kernel_size=3, stride=2) for c in cfg.stem] or None
    model = VisionTransformer(
        SIZE,
        cfg.patch_size,
        cfg.layers,
        cfg.heads,
        cfg.d_model,
        cfg.d_ff,
        cfg.dropout,
        num_classes=num_classes,
        conv_stem_configs=stem,
    )
    return randomise(model)


def pretrained(state: dict, path, num_classes: int = 3, **changes) -> torch.nn.Module:
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    cfg = MODEL.model_copy(update={"weights": f"path:{path}"} | changes)
    return created(cfg, num_classes)


def created(cfg: ViTConfig, num_classes: int = 3, size: int = SIZE) -> torch.nn.Module:
    about = ABOUT | {"image_size": size, "classes": [str(i) for i in range(num_classes)]}
    torch.manual_seed(7)
    return create_model(cfg, about)[1].eval()


def test_weights_of_torchvision_give_torchvisions_outputs(tmp_path):
    theirs, inputs = original(), make_inputs()
    ours = pretrained(theirs.state_dict(), tmp_path / "weights.safetensors")
    assert any(".mlp.0.weight" in key for key in theirs.state_dict())
    assert len(find(ours, FFN)) == 2 and theirs(inputs).std() > 0
    assert torch.equal(ours(inputs), theirs(inputs))


def test_a_convolutional_stem_is_torchvisions(tmp_path):
    cfg, inputs = MODEL.model_copy(update={"stem": [5, 6]}), make_inputs()
    theirs = original(cfg)
    ours = pretrained(theirs.state_dict(), tmp_path / "weights.safetensors", stem=[5, 6])
    assert torch.equal(ours(inputs), theirs(inputs))


def test_old_torchvision_names_are_understood(tmp_path):
    theirs, inputs = original(), make_inputs()
    state = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for key, value in theirs.state_dict().items()
    }
    ours = pretrained(state, tmp_path / "weights.safetensors")
    assert torch.equal(ours(inputs), theirs(inputs))


def test_dropout_falls_where_torchvision_drops(tmp_path):
    theirs, inputs = original(DROPPING).train(), make_inputs()
    path = tmp_path / "weights.safetensors"
    ours = pretrained(theirs.state_dict(), path, dropout=0.3).train()
    outputs = []
    for model in (theirs, ours, ours):
        torch.manual_seed(3)
        outputs.append(model(inputs))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[1], outputs[2])
    assert not torch.equal(ours(inputs), outputs[0])


def test_another_number_of_classes_keeps_a_fresh_head_and_all_else(tmp_path):
    theirs = original(num_classes=10)
    ours = pretrained(theirs.state_dict(), tmp_path / "weights.safetensors", num_classes=3)
    fresh = created(MODEL)
    assert torch.equal(ours.heads.head.weight, fresh.heads.head.weight)
    assert ours.heads.head.bias.shape == (3,)
    theirs.heads = ours.heads = torch.nn.Identity()
    assert torch.equal(ours(make_inputs()), theirs(make_inputs()))


@pytest.mark.parametrize("changes", [{"d_ff": 64}, {"layers": 3}, {"layers": 1}, {"d_model": 32}])
def test_weights_of_another_shape_are_refused(tmp_path, changes):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match=f"weights path:{path} do not fit.*first.*d_ff"):
        pretrained(original().state_dict(), path, **changes)


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    state = original().state_dict()
    del state["encoder.layers.encoder_layer_1.mlp.3.bias"]
    with pytest.raises(CheckpointError, match="1 tensors are missing.*layer_1.mlp.down.bias"):
        pretrained(state, tmp_path / "weights.safetensors")


def test_a_missing_or_truncated_file_of_weights_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    cfg = MODEL.model_copy(update={"weights": f"path:{path}"})
    with pytest.raises(CheckpointError, match="weights.safetensors does not exist.*model.weights"):
        created(cfg)
    save_file(original().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="weights.safetensors is damaged or truncated"):
        created(cfg)


@pytest.mark.parametrize("name", ["vit_b_17:IMAGENET1K_V1", "vit_b_16:IMAGENET1K_V9"])
def test_weights_that_torchvision_does_not_know_are_refused(name):
    cfg = MODEL.model_copy(update={"weights": f"torchvision:{name}"})
    with pytest.raises(CheckpointError, match=f"torchvision knows no weights {name}"):
        created(cfg)


def test_a_failing_download_says_how_to_do_without_a_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    cfg = MODEL.model_copy(update={"weights": "torchvision:vit_b_16:IMAGENET1K_V1"})
    with pytest.raises(CheckpointError, match="no route to host.*path:FILE.safetensors"):
        created(cfg)


@pytest.mark.workflow  # 86 million parameters, three times
def test_the_weights_of_vit_b_16_fit_the_papers_model(tmp_path):
    theirs = vit_b_16(weights=None).eval()
    torch.nn.init.normal_(theirs.heads.head.weight, std=0.1)
    path = tmp_path / "vit_b_16.safetensors"
    save_file(theirs.state_dict(), path)
    sizes = {"patch_size": 16, "layers": 12, "d_model": 768, "heads": 12, "d_ff": 3072}
    cfg = ViTConfig(architecture="vit", weights=f"path:{path}", **sizes)
    ours = created(cfg, num_classes=1000, size=224)
    inputs = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(ours(inputs), theirs(inputs))


def test_the_options_rebuild_the_model():
    model = randomise(created(MODEL))
    rebuilt = build_model("vit", OPTIONS).eval()
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(make_inputs()), model(make_inputs()))


class Read(dict):
    """Options that remember which of them were read."""

    def __init__(self, *values):
        super().__init__(*values)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


def test_a_model_is_rebuilt_by_every_option_that_it_is_saved_with():
    options = Read(OPTIONS)
    build_model("vit", options)
    assert options.read == OPTIONS.keys()


def test_an_architecture_that_is_not_described_is_refused_with_those_that_are():
    message = f"unknown architecture 'llama'; allowed: {', '.join(ARCHITECTURES)}"
    with pytest.raises(UnknownName, match=message):
        build_model("llama", {})


def test_replace_refuses_a_model_that_has_nothing_to_replace():
    with pytest.raises(ValueError, match="Linear holds no FFN"):
        replace(torch.nn.Linear(1, 1), FFN, lambda ffn, _: ffn)
