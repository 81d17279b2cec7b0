"""A model of few experts, trained on the task, its routers by what the dense model computes."""

from pathlib import Path

import torch
from torch import nn

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.data.splits import Batch
from d2dmoe.errors import ConfigError
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.methods.factorllm.layer import FactorMoE, LinearRouter, add_linear_router
from d2dmoe.methods.factorllm.losses import balance_loss, label_divergence, teacher_labels
from d2dmoe.methods.factorllm.options import FactorLLMConfig
from d2dmoe.moe import MoE, set_selection, split_ffn, watch_inputs
from d2dmoe.padding import real_tokens, without_padding
from d2dmoe.seeding import seed_for
from d2dmoe.stages.fitting import fit_model
from d2dmoe.surgery import find, replace, watch
from d2dmoe.training import Losses, cross_entropy_loss


def train_factorllm(parent: Path, cfg: FactorLLMConfig, run: Run) -> Trained:
    """Split each FFN of a saved dense model into neighbouring neurons, and train all weights on
    the task at K experts a token, and the routers on the teacher's labels and on balance.

    The teacher is the dense model's own FFN on what the student's layer sees. Experts learn by the
    task alone, routers by their own losses alone, of which the mean over layers counts.

    Raises:
        ConfigError: N does not divide the hidden neurons.
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_dense_model(parent)
    teachers = find(model.to(run.device), FFN)
    for name, ffn in teachers.items():
        if ffn.d_ff % cfg.experts:
            raise ConfigError(
                f"factorllm.experts = {cfg.experts} does not divide the {ffn.d_ff} hidden neurons "
                f"of {name}"
            )
    torch.manual_seed(seed_for("routers", run.seed))
    replace(model, FFN, lambda ffn, _index: _split(ffn, cfg.experts))
    set_selection(model, "top_k", cfg.active)
    history = _fit(model, teachers, cfg, run)
    return model, spec.with_part("factorllm", experts=cfg.experts, active=cfg.active), history


def _split(ffn: FFN, experts: int) -> MoE:
    neurons = assign_neurons(ffn.activated.weight, experts, "contiguous", seed=0)
    moe = split_ffn(ffn, neurons, FactorMoE)
    add_linear_router(moe)
    return moe


def _fit(model: nn.Module, teachers: dict[str, FFN], cfg: FactorLLMConfig, run: Run) -> list[dict]:
    moes = find(model, FactorMoE)
    shown = {name: moe.outputs for name, moe in moes.items()}
    seen = watch(shown, lambda _module, _input, output: output.detach())
    with watch_inputs(model) as inputs, seen as outputs:

        def losses(batch: Batch, _progress: float) -> Losses:
            task = cross_entropy_loss(logits_of(model, batch[0]), batch[1], cfg.label_smoothing)
            real = real_tokens(batch[0])
            divergence, balance = torch.zeros_like(task), torch.zeros_like(task)
            for name, moe in moes.items():
                z = without_padding(inputs[name].detach(), real)
                logits = _router(moe).logits(z)
                each = outputs[name]  # [batch, tokens, N, d_out]
                each = each.flatten(0, -3) if real is None else each[real]
                labels = teacher_labels(each, teachers[name], z, cfg.active)
                divergence = divergence + label_divergence(logits, labels) / len(moes)
                mask = moe.selection(logits)
                balance = balance + balance_loss(logits, mask) / len(moes)
            loss = task + cfg.router_weight * divergence + cfg.balance_weight * balance
            return {"loss": loss, "task": task, "labels": divergence, "balance": balance}

        return fit_model(model, losses, cfg, run, f"FactorLLM, {cfg.active} of {cfg.experts}")


def _router(moe: MoE) -> LinearRouter:
    router: nn.Module | None = moe.router
    assert isinstance(router, LinearRouter)
    return router
