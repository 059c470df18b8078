"""Linear cross-entropy in plain PyTorch: used on a CPU, and the reference of the Triton kernel."""

from functools import partial

import torch
from ift_scale_kernels.linear_cross_entropy import chunked
from torch import Tensor


def row_step(
    logits_CV: Tensor,
    labels_C: Tensor,
    scales_C: Tensor,
    softcap: float | None,
    gradient_CV: Tensor | None,
) -> Tensor:
    """Implements `chunked.RowStep`; every pass over the logits is in place.

    d loss / d logit = softmax - 1[label], times 1 - tanh(z / softcap)^2 with a cap. The 1 is
    subtracted before the division by the sum, so the softmax itself is never stored.
    """
    slope_CV = None
    if softcap is not None:
        logits_CV.div_(softcap).tanh_()
        slope_CV = None if gradient_CV is None else logits_CV.square().neg_().add_(1)
        logits_CV.mul_(softcap)
    labels_C1 = labels_C[:, None]
    max_C1 = logits_CV.amax(-1, keepdim=True)
    label_C1 = logits_CV.gather(1, labels_C1)
    sum_C1 = logits_CV.sub_(max_C1).exp_().sum(-1, keepdim=True)
    losses_C = (sum_C1.log() + max_C1 - label_C1)[:, 0]
    if gradient_CV is not None:
        logits_CV.scatter_add_(1, labels_C1, -sum_C1)
        if slope_CV is not None:
            logits_CV.mul_(slope_CV)
        torch.mul(logits_CV, scales_C[:, None] / sum_C1, out=gradient_CV)
    return losses_C


linear_cross_entropy = partial(chunked.linear_cross_entropy, row_step)
