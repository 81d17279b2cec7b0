"""Models without a head: what is asked of their embeddings, and a head for a person's classes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from d2dmoe.api.batch import Batch
from d2dmoe.api.padding import real_by_part
from d2dmoe.errors import UserError

Pool = Callable[[Any, Batch], Tensor]  # of a model's outputs for a batch: [batch, d]


def mean_of_tokens(outputs: Any, batch: Batch) -> Tensor:
    """The mean of the last layer's real tokens, of unit length: [batch, d].

    Raises:
        UserError: the model gives no states of tokens.
    """
    states = _states(outputs)
    if states.ndim == 2:
        return normalize(states)
    mask = batch.kwargs.get("attention_mask")
    if mask is None:
        return normalize(states.mean(1))
    real = mask.unsqueeze(-1).to(states)  # [batch, tokens, 1]
    return normalize((states * real).sum(1) / real.sum(1).clamp(min=1))


def first_token(outputs: Any, _batch: Batch) -> Tensor:
    """The last layer's first token, of unit length: [batch, d].

    Raises:
        UserError: the model gives no states of tokens.
    """
    states = _states(outputs)
    return normalize(states if states.ndim == 2 else states[:, 0])


def _states(outputs: Any) -> Tensor:
    """[batch, tokens, d] or, where the model has pooled itself, [batch, d]."""
    states = outputs if isinstance(outputs, Tensor) else getattr(outputs, "last_hidden_state", None)
    if not isinstance(states, Tensor):
        raise UserError(
            f"{type(outputs).__name__} has neither logits nor states of tokens, so the command "
            "line knows no loss for the model. Use the library, with a loss of your own."
        )
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states  # [batch, d, h, w]


def distance(pool: Pool) -> Callable[[Any, Batch], Tensor]:
    """The loss of an embedder: 1 − the cosine to what the original gave, of each sample [batch]."""

    def loss(outputs: Any, batch: Batch) -> Tensor:
        return 1 - cosine_similarity(pool(outputs, batch).float(), batch.targets.float())

    return loss


class EmbeddingClassifier(nn.Module):
    """A model without a head, and a linear one on its embeddings: logits [batch, classes]."""

    def __init__(self, model: nn.Module, pool: Pool, head: nn.Linear):
        super().__init__()
        self.model, self.pool, self.head = model, pool, head

    def forward(self, **inputs: Tensor) -> Tensor:
        batch = Batch((), inputs, None, real_by_part(self.model, inputs))
        return self.head(self.pool(batch.outputs(self.model), batch).float())


def fit_head(features: Tensor, labels: Tensor, classes: int, decay: float = 1e-4) -> nn.Linear:
    """A linear classifier of frozen embeddings: logistic regression, fitted to the end.

    Args:
        features: of unit length, [samples, d].
        labels: integers [samples].
        classes: how many there are.
        decay: of the squared weights, so that classes which can be separated have finite ones.
    """
    head = nn.Linear(features.shape[1], classes, device=features.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(head(features), labels) + decay * head.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return head.requires_grad_(False)
