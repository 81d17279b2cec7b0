"""Stage 2: sparsity enforcement, fine-tuning with L = L_task + α · L_s (paper section 3.1)."""

from pathlib import Path

from torch import nn

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.config.stages import SparsifyConfig
from d2dmoe.data.splits import Batch
from d2dmoe.ffn import set_activation
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.padding import real_tokens
from d2dmoe.sparsity import activation_of, alpha_at, penalty, watch_activations
from d2dmoe.spec import ModelSpec
from d2dmoe.stages.fitting import fit_model
from d2dmoe.training import Done, Losses, cross_entropy_loss


def sparsify(parent: Path, cfg: SparsifyConfig, run: Run) -> Trained:
    """Fine-tune a saved dense model with the configured penalty.

    Raises:
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_dense_model(parent)
    if activation := activation_of(cfg.mode):
        set_activation(model, activation)
        spec = spec.with_part("sparsify", activation=activation)
    with watch_activations(model) as activations:

        def losses(batch: Batch, progress: Done) -> Losses:
            inputs, targets = batch
            task = cross_entropy_loss(logits_of(model, inputs), targets, cfg.label_smoothing)
            sparsity = penalty(cfg.mode, activations.values(), real_tokens(inputs))
            alpha = alpha_at(cfg.schedule, cfg.alpha, progress)
            return {"loss": task + alpha * sparsity, "task": task, "sparsity": sparsity}

        name = f"sparsify alpha {cfg.alpha}"
        history = fit_model(model, losses, cfg, run, name)
    return model, spec, history


def rebuild(model: nn.Module, spec: ModelSpec, activation: str) -> nn.Module:
    """The FFNs with the activation that they were fine-tuned with."""
    set_activation(model, activation)
    return model
