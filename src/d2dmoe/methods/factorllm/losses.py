"""What FactorLLM's routers learn by: the teacher's labels, and the balance of loads.

The authors' released code gives routers no gradient, for their choice is hard and their loss is
detached; here they have that of both losses, as the paper says.
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from d2dmoe.ffn import FFN
from d2dmoe.pooling import pooled


@torch.no_grad()
def teacher_labels(outputs: Tensor, teacher: FFN, z: Tensor, active: int) -> Tensor:
    """The K experts whose outputs are nearest, each on its own, to K / N of the teacher's output;
    b2, which lies outside of the experts, is left out of both.

    Args:
        outputs: of the experts of a layer, [tokens, N, d_out].
        teacher: the FFN that it was, in evaluation mode.
        z: the layer's inputs, [tokens, d_model].
        active: K.

    Returns:
        Boolean [tokens, N], K of each token.
    """
    experts = outputs.shape[1]
    wanted = teacher(z) if teacher.down.bias is None else teacher(z) - teacher.down.bias
    share = wanted * (active / experts)
    errors = torch.linalg.vector_norm(outputs - share.unsqueeze(1), dim=-1)  # [tokens, N]
    nearest = errors.topk(active, dim=-1, largest=False).indices
    return one_hot(nearest, experts).sum(-2).bool()


def label_divergence(logits: Tensor, labels: Tensor) -> Tensor:
    """KL(softmax(logits) ‖ softmax(labels)) in nats, the mean over tokens.

    Args:
        logits: of a router, [tokens, N].
        labels: boolean [tokens, N], in whose softmax a label counts 1 and the others 0.
    """
    ours, theirs = logits.float().log_softmax(-1), labels.float().log_softmax(-1)
    return pooled((ours.exp() * (ours - theirs)).sum(-1).mean(), len(logits))


def balance_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """N / K · Σ_i f_i P_i: f_i is the share of tokens that run expert i, P_i its mean probability.

    1 where all experts run equally often, N / K at most. The form is the Switch Transformer's, for
    the released code's, a mean of the chosen experts' probabilities, tells no loads.

    Args:
        logits: of a router, [tokens, N].
        mask: what its tokens run, boolean [tokens, N].
    """
    shares, probabilities = (
        pooled(x.mean(0), len(x)) for x in (mask.float(), logits.float().softmax(-1))
    )
    return len(shares) * (shares * probabilities).sum() / shares.sum()
