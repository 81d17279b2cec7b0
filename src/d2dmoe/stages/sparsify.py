"""Stage 2: sparsity enforcement, fine-tuning with L = L_task + α · L_s (paper section 3.1)."""

from pathlib import Path

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.config.stages import SparsifyConfig
from d2dmoe.data import Batch, open_split
from d2dmoe.evaluate import batches_of
from d2dmoe.inputs import logits_of, real_tokens
from d2dmoe.jobs.run import Run
from d2dmoe.sparsity import (
    alpha_at,
    count_active,
    penalty,
    set_activation,
    uses_relu,
    watch_activations,
)
from d2dmoe.stages.dense import fit_model
from d2dmoe.training import Losses, cross_entropy_loss


def sparsify(parent: Path, cfg: SparsifyConfig, data: Path, run: Run) -> Trained:
    """Fine-tune a saved dense model with the configured penalty.

    Raises:
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_dense_model(parent)
    if uses_relu(cfg.mode):
        set_activation(model, "relu")
        spec = spec.with_(activation="relu")
    with watch_activations(model) as activations:

        def losses(batch: Batch, progress: float) -> Losses:
            inputs, targets = batch
            task = cross_entropy_loss(logits_of(model, inputs), targets, cfg.label_smoothing)
            sparsity = penalty(cfg.mode, activations.values(), real_tokens(inputs))
            alpha = alpha_at(cfg.schedule, cfg.alpha, progress)
            return {"loss": task + alpha * sparsity, "task": task, "sparsity": sparsity}

        history = fit_model(model, losses, cfg, data, run, f"sparsify alpha {cfg.alpha}")
    return model, spec, history


def activity(model_path: Path, data: Path, split: str, batch_size: int, run: Run) -> list[dict]:
    """How many neurons of each layer are active, over all tokens of a split.

    Returns:
        Rows layer, active, d_ff, tokens: how many tokens have that many active neurons.
    """
    model, _spec = load_dense_model(model_path)
    inputs = (x for x, _ in batches_of(open_split(data, split), batch_size, run.device))
    histogram = count_active(model.to(run.device), inputs)
    return [
        {"layer": layer, "active": active, "d_ff": len(row) - 1, "tokens": tokens}
        for layer, row in enumerate(histogram.tolist())
        for active, tokens in enumerate(row)
        if tokens
    ]
