"""RMSNorm in plain PyTorch."""

from functools import partial

import torch
from ift_scale_kernels.rms_norm import autograd
from torch import Tensor


def forward(
    x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float, offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Implements `autograd.Forward`. Computes the norm in one read, without storing the squares."""
    total_TD = x_TD if residual_TD is None else x_TD + residual_TD
    exact_TD = total_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
    norm_T1 = torch.linalg.vector_norm(exact_TD, dim=-1, keepdim=True)
    rstd_T1 = norm_T1.square_().div_(x_TD.shape[-1]).add_(eps).rsqrt_()
    y_TD = exact_TD * rstd_T1
    if offset != 0:
        return y_TD.mul_(weight_D.to(y_TD.dtype) + offset).to(x_TD.dtype), total_TD, rstd_T1[:, 0]
    return y_TD.to(x_TD.dtype).mul_(weight_D), total_TD, rstd_T1[:, 0]


def backward(
    grad_y_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T: Tensor, offset: float
) -> tuple[Tensor, Tensor]:
    """Implements `autograd.Backward`.

    grad_x = rstd * (g - n * mean(g * n)), with n = x * rstd and g = grad_y * (offset + weight).
    """
    exact, rstd_T1 = rstd_T.dtype, rstd_T[:, None]
    scale_D = weight_D.to(exact) + offset
    grad_TD = grad_y_TD.to(exact)
    normed_TD = x_TD.to(exact) * rstd_T1
    product_TD = grad_TD * normed_TD
    mean_T1 = (product_TD @ scale_D)[:, None] / x_TD.shape[-1]
    grad_weight_D = product_TD.sum(0)
    torch.mul(grad_TD, scale_D, out=product_TD)
    grad_x_TD = product_TD.addcmul_(normed_TD, mean_T1, value=-1).mul_(rstd_T1)
    return grad_x_TD.to(x_TD.dtype), grad_weight_D.to(weight_D.dtype)


rms_norm = partial(autograd.rms_norm, forward, backward)
