"""Liger-Kernel's ops (Hsu et al. 2024, arXiv 2410.10989) with our signatures.

Written for liger-kernel 0.8.5, whose loss with reduction `none` propagates the rows' weights to the
head's gradient. Earlier versions were not checked.
"""

from typing import Any

import torch
from ift_scale_kernels.linear_cross_entropy import reference
from ift_scale_kernels.rotary.reference import rotary as plain_rotary
from liger_kernel.transformers import functional as liger
from torch import Tensor


def linear_cross_entropy(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    labels_R: Tensor,
    weights_R: Tensor | None = None,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See `chunked.linear_cross_entropy`.

    Losses of single rows need Liger's reduction `none`, which recomputes the logits in the backward
    pass. `chunk_rows` is ignored.
    """
    if len(hidden_RD) == 0:  # Liger would divide by zero chunks
        return reference.linear_cross_entropy(hidden_RD, weight_VD, labels_R, bias_V=bias_V)
    if logit_scale != 1.0:
        hidden_RD = hidden_RD * logit_scale
        bias_V = None if bias_V is None else bias_V * logit_scale
    options: dict[str, Any] = {"softcap": softcap, "accum_dtype": torch.float32}
    losses_R = liger.liger_fused_linear_cross_entropy(
        hidden_RD, weight_VD, labels_R, bias=bias_V, reduction="none", **options
    )
    loss = losses_R.sum() if weights_R is None else torch.dot(losses_R, weights_R.float())
    return loss, losses_R.detach()


def rms_norm(
    x_TD: Tensor,
    weight_D: Tensor,
    eps: float,
    *,
    residual_TD: Tensor | None = None,
    offset: float = 0.0,
) -> Any:
    """See `autograd.rms_norm`. Not in place: the residual branch may need the gradient too."""
    mode = "gemma" if offset else "llama"
    if residual_TD is None:
        return liger.liger_rms_norm(x_TD, weight_D, eps, offset, mode, False)
    return liger.liger_fused_add_rms_norm(x_TD, residual_TD, weight_D, eps, offset, mode, False)


def swiglu(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """See `autograd.swiglu`."""
    return liger.liger_swiglu(gate, up) if activation == "silu" else liger.liger_geglu(gate, up)


def rotary(
    q_BHTD: Tensor, k_BKTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor
) -> tuple[Tensor, Tensor]:
    """See `autograd.rotary`.

    Liger overwrites q and k, which selective checkpointing may have kept, so it gets copies.
    """
    if 0 in (q_BHTD.shape[1], k_BKTD.shape[1]):
        return plain_rotary(q_BHTD, k_BKTD, cos_BTD, sin_BTD)
    return liger.liger_rope(q_BHTD.clone(), k_BKTD.clone(), cos_BTD, sin_BTD)
