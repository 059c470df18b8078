"""RMSNorm's autograd function: keeps its input and one number per row, and recomputes the rest.

Shapes: T rows (all leading dimensions of the caller's tensors), D normalised size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Forward = Callable[[Tensor, Tensor | None, Tensor, float, float], tuple[Tensor, Tensor, Tensor]]
"""(x_TD, residual_TD, weight_D, eps, offset) -> y_TD, x_TD + residual_TD, rstd_T (1 / RMS)."""

Backward = Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""(grad_y_TD, x_TD with the residual, weight_D, rstd_T, offset) -> grad_x_TD, grad_weight_D."""


def rms_norm(
    forward: Forward,
    backward: Backward,
    x_TD: Tensor,
    weight_D: Tensor,
    eps: float,
    *,
    residual_TD: Tensor | None = None,
    offset: float = 0.0,
) -> Any:
    """Returns y = x / sqrt(mean(x^2) + eps) * (offset + weight), over the last dimension.

    With a residual, x is replaced by x + residual, and (y, x + residual) is returned. Rounding
    follows the models: with offset 0 (Llama, Mistral, Qwen), the float32 quotient is rounded to x's
    dtype and then multiplied by the weight; otherwise (Gemma: 1), the product is float32 and
    rounded once. y has x's dtype.
    """
    return _RMSNorm.apply(x_TD, residual_TD, weight_D, eps, offset, forward, backward)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight_D: Tensor,
        eps: float,
        offset: float,
        forward: Forward,
        backward: Backward,
    ) -> Any:
        size = x.shape[-1]
        residual_TD = None if residual is None else residual.reshape(-1, size)
        y_TD, total_TD, rstd_T = forward(x.reshape(-1, size), residual_TD, weight_D, eps, offset)
        ctx.save_for_backward(total_TD, weight_D, rstd_T)
        ctx.offset, ctx.backward_pass, ctx.has_residual = offset, backward, residual is not None
        return (
            y_TD.view(x.shape) if residual is None else (y_TD.view(x.shape), total_TD.view(x.shape))
        )

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_y: Tensor, grad_total: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        total_TD, weight_D, rstd_T = ctx.saved_tensors
        grad_TD, grad_weight_D = ctx.backward_pass(
            grad_y.reshape(total_TD.shape), total_TD, weight_D, rstd_T, ctx.offset
        )
        grad = grad_TD.view(grad_y.shape)
        if grad_total is not None:
            grad = grad + grad_total
        return grad, grad if ctx.has_residual else None, grad_weight_D, None, None, None, None
