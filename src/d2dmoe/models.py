"""The dense models, and where each architecture keeps its FFNs.

Every model leaves here with its FFNs in the form of `ffn.FFN`, exactly equal to the original, so
that no later stage knows architectures.
"""

from pathlib import Path

from torch import nn
from torchvision.models import get_model_weights
from torchvision.models.vision_transformer import ConvStemConfig, MLPBlock, VisionTransformer

from d2dmoe.config.model import ModelConfig
from d2dmoe.errors import CheckpointError
from d2dmoe.ffn import FFN
from d2dmoe.surgery import replace
from d2dmoe.tensors import load_tensors

HEAD = ("heads.head.weight", "heads.head.bias")  # the classifier's names in torchvision


def build_model(cfg: ModelConfig, image_size: int, num_classes: int) -> nn.Module:
    """A randomly initialised model; images [batch, 3, image_size, image_size] to logits."""
    model = VisionTransformer(
        image_size=image_size,
        patch_size=cfg.patch_size,
        num_layers=cfg.layers,
        num_heads=cfg.heads,
        hidden_dim=cfg.d_model,
        mlp_dim=cfg.d_ff,
        dropout=cfg.dropout,
        num_classes=num_classes,
        conv_stem_configs=[ConvStemConfig(c, kernel_size=3, stride=2) for c in cfg.stem] or None,
    )
    return replace(model, MLPBlock, _from_mlp_block)


def load_pretrained(model: nn.Module, cfg: ModelConfig, num_classes: int) -> None:
    """Load `cfg.weights` into a model from `build_model`, in place.

    A classification head of another number of classes keeps its fresh weights.

    Raises:
        CheckpointError: the weights cannot be had, or are not those of this model.
    """
    if cfg.weights == "scratch":
        return
    kind, _, name = cfg.weights.partition(":")
    state = _torchvision_state(name) if kind == "torchvision" else _local_state(Path(name))
    state = {_ffn_key(key): value for key, value in state.items()}
    if HEAD[0] in state and len(state[HEAD[0]]) != num_classes:
        state = {key: value for key, value in state.items() if key not in HEAD}
    expected = {key: value.shape for key, value in model.state_dict().items()}
    missing = set(expected) - set(state) - set(HEAD)
    wrong = sorted(missing | {k for k, v in state.items() if expected.get(k) != v.shape})
    if wrong:
        raise CheckpointError(
            f"the weights {cfg.weights} do not fit the configured model: {len(wrong)} tensors are "
            f"missing, unknown or of another shape, first {wrong[:3]}. Give the model section the "
            "layers, d_model, heads, d_ff, patch_size of the checkpoint."
        )
    model.load_state_dict(state, strict=False)


def _from_mlp_block(block: MLPBlock, _: int) -> FFN:
    up, down = block[0], block[3]
    return FFN(up, down, activation="gelu", dropout=block[2].p)


def _ffn_key(key: str) -> str:
    """torchvision's names of an FFN's tensors (mlp.0, mlp.3; before 0.12 linear_1) to ours."""
    for old, new in {
        ".mlp.0.": ".mlp.up.",
        ".mlp.3.": ".mlp.down.",
        ".mlp.linear_1.": ".mlp.up.",
        ".mlp.linear_2.": ".mlp.down.",
    }.items():
        key = key.replace(old, new)
    return key


def _torchvision_state(name: str) -> dict:
    architecture, _, weights = name.partition(":")
    try:
        return get_model_weights(architecture)[weights].get_state_dict(check_hash=True)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"torchvision knows no weights {name}: {error}") from error
    except (OSError, RuntimeError) as error:  # no network, or a wrong hash
        raise CheckpointError(
            f"cannot download torchvision's {name}: {error}. Without a network, save its state "
            "dict as safetensors elsewhere and name it by weights: path:FILE.safetensors."
        ) from error


def _local_state(path: Path) -> dict:
    return load_tensors(path, "Give model.weights the path of a safetensors file.")[0]
