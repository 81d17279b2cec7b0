"""Stage 3: every FFN, and every MLP of an attention projection, into experts by balanced clustering
(paper section 3.2)."""

from pathlib import Path

from torch import nn

from d2dmoe.checkpoint import ModelSpec, load_dense_model
from d2dmoe.config.stages import SplitConfig
from d2dmoe.conversion import to_moe
from d2dmoe.errors import ConfigError
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.jobs.progress import logger
from d2dmoe.seeding import seed_for
from d2dmoe.surgery import find


def split(parent: Path, cfg: SplitConfig, seed: int) -> tuple[nn.Module, ModelSpec]:
    """Split each FFN of a saved model, and each MLP of its attention projections; the result equals
    it as long as every expert runs.

    Raises:
        CheckpointError: the saved model is missing, damaged or split already.
        ConfigError: an expert size does not divide the hidden neurons.
    """
    model, spec = load_dense_model(parent)
    experts, num_experts = [], {}
    for layer, (name, ffn) in enumerate(find(model, FFN).items()):
        count = num_experts[ffn.role] = _num_experts(name, ffn, cfg)
        layer_seed = seed_for("split", seed, layer)
        experts.append(assign_neurons(ffn.activated.weight, count, cfg.method, layer_seed))
        logger.info("%s: %d experts of %d neurons", name, count, ffn.d_ff // count)
    spec = spec.with_(num_experts=num_experts["ffn"])
    if spec.projections:
        size = cfg.projection_expert_size
        spec = spec.with_(projections=spec.projections.model_copy(update={"expert_size": size}))
    return to_moe(model, experts), spec


def _num_experts(name: str, ffn: FFN, cfg: SplitConfig) -> int:
    key = "expert_size" if ffn.role == "ffn" else "projection_expert_size"
    size = getattr(cfg, key)
    if ffn.d_ff % size:
        raise ConfigError(
            f"split.{key} = {size} does not divide the {ffn.d_ff} hidden neurons of {name}"
        )
    return ffn.d_ff // size
