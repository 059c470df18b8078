"""Selects rows of a tensor, each at most once, with a gradient that is copied back.

torch's own indexing accumulates gradients because a row may be selected twice. That is slow on a
CPU and has no fixed order on a GPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def select_rows(x: Tensor, rows_R: Tensor, dim: int) -> Tensor:
    """Returns the rows of `x` along `dim`. `rows_R` must not contain duplicates."""
    return _SelectRows.apply(x, rows_R, dim)


class _SelectRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows_R: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(rows_R)
        ctx.dim, ctx.shape = dim, x.shape
        return x.index_select(dim, rows_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (rows_R,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).index_copy_(ctx.dim, rows_R, gradient), None, None
