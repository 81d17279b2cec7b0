"""Stage 3: the neurons of every FFN, and of every MLP of an attention projection, are clustered
into experts of equal size (paper section 3.2)."""

from pathlib import Path

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.config.stages import ClusteringConfig
from d2dmoe.conversion import to_moe
from d2dmoe.errors import ConfigError
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.run import Run
from d2dmoe.seeding import seed_for
from d2dmoe.surgery import find


def cluster(parent: Path, cfg: ClusteringConfig, run: Run) -> Trained:
    """Make experts of each FFN of a saved model, and of each MLP of its attention projections; the
    result equals it as long as every expert runs.

    Raises:
        CheckpointError: the saved model is missing, damaged or has experts already.
        ConfigError: an expert size does not divide the hidden neurons.
    """
    model, spec = load_dense_model(parent)
    neurons, num_experts = [], {}
    for layer, (name, ffn) in enumerate(find(model, FFN).items()):
        count = num_experts[ffn.role] = _num_experts(name, ffn, cfg)
        seed = seed_for("split", run.seed, layer)
        neurons.append(assign_neurons(ffn.activated.weight, count, cfg.method, seed))
        logger.info("%s: %d experts of %d neurons", name, count, ffn.d_ff // count)
    spec = spec.with_part("clustering", num_experts=num_experts)
    return to_moe(model, neurons), spec, []


def _num_experts(name: str, ffn: FFN, cfg: ClusteringConfig) -> int:
    key = "expert_size" if ffn.role == "ffn" else "projection_expert_size"
    size = getattr(cfg, key)
    if ffn.d_ff % size:
        raise ConfigError(
            f"clustering.{key} = {size} does not divide the {ffn.d_ff} hidden neurons of {name}"
        )
    return ffn.d_ff // size
