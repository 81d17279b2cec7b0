"""AdamW and its learning rate, the same in every training."""

import math
from typing import Any, Protocol

import torch
from torch import nn


class OptimizerConfig(Protocol):
    """What both need to know."""

    @property
    def lr(self) -> float: ...  # peak
    @property
    def min_lr(self) -> float: ...  # at the end
    @property
    def warmup(self) -> float: ...  # share of the steps, in [0, 1]
    @property
    def weight_decay(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...


def lr_at(step: int, total: int, cfg: OptimizerConfig) -> float:
    """Learning rate of a step: linear warm-up to `lr`, then a cosine down to `min_lr`."""
    warmup = math.ceil(cfg.warmup * total)
    if step < warmup:
        return cfg.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of all groups; in its place, where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def make_optimizer(
    trained: nn.Module, cfg: OptimizerConfig, graphed: bool = False
) -> torch.optim.AdamW:
    """AdamW that decays matrices but neither biases (whatever their shape) nor norms.

    `graphed`: its steps can be part of a CUDA graph, so that its learning rate is a tensor.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim > 1 and not name.endswith("bias")
            (decayed if matrix else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": cfg.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    lr: float | torch.Tensor = cfg.lr
    if graphed:
        lr = torch.tensor(cfg.lr, device=(decayed + others)[0].device)
    how: Any = {"fused": True, "capturable": graphed}
    return torch.optim.AdamW(groups, lr=lr, betas=cfg.betas, **how)
