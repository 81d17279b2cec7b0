"""Stage 3: every FFN into experts by balanced clustering (paper section 3.2)."""

from pathlib import Path

from torch import nn

from d2dmoe.checkpoint import ModelSpec, load_dense_model
from d2dmoe.config.stages import SplitConfig
from d2dmoe.conversion import to_moe
from d2dmoe.errors import ConfigError
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.progress import logger
from d2dmoe.seeding import seed_for
from d2dmoe.surgery import find


def split(parent: Path, cfg: SplitConfig, seed: int) -> tuple[nn.Module, ModelSpec]:
    """Split each FFN of a saved model; the result equals it as long as every expert runs.

    Raises:
        CheckpointError: the saved model is missing, damaged or split already.
        ConfigError: the expert size does not divide d_ff.
    """
    model, spec = load_dense_model(parent)
    experts = []
    for layer, (name, ffn) in enumerate(find(model, FFN).items()):
        if ffn.d_ff % cfg.expert_size:
            raise ConfigError(
                f"split.expert_size = {cfg.expert_size} does not divide the {ffn.d_ff} hidden "
                f"neurons of {name}"
            )
        num_experts = ffn.d_ff // cfg.expert_size
        layer_seed = seed_for("split", seed, layer)
        rows = ffn.activated.weight
        experts.append(assign_neurons(rows, num_experts, cfg.method, layer_seed))
        logger.info("%s: %d experts of %d neurons", name, num_experts, cfg.expert_size)
    return to_moe(model, experts), spec.with_(num_experts=num_experts)
