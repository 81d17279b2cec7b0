"""Knowledge distillation: a student imitates a teacher's softened probabilities (Hinton et al.
2015, arXiv 1503.02531)."""

from torch import Tensor
from torch.nn.functional import kl_div

from d2dmoe.pooling import pooled


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)) in nats, the mean over targets, a scalar.

    The factor T² keeps the gradient's size, which softening divides by about T².

    Args:
        student: logits, [batch, classes] or [batch, tokens, vocabulary].
        teacher: logits of the same shape.
        temperature: T, above 0.
    """
    log_q, log_p = (
        (logits.flatten(0, -2).float() / temperature).log_softmax(-1)  # [targets, classes]
        for logits in (student, teacher)
    )
    divergence = kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return temperature**2 * pooled(divergence, len(log_q))
