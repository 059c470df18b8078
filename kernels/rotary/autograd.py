"""The rotation's place in the graph: it keeps cosines and sines only, since its derivative is the rotation back.

Shapes: B sequences, H heads, T tokens, D head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Rotate = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""(x_BHTD, cos_BTD, sin_BTD, back) -> x_BHTD turned by the angles, or by their negatives; x stays as it is."""


def rotary(
    rotate: Rotate, q_BHTD: Tensor, k_BKTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor
) -> tuple[Tensor, Tensor]:
    """x * cos + (-x2, x1) * sin for the halves x1, x2 of the last dimension, for queries and keys alike.

    Both halves of cos and sin hold the same D / 2 angles, as Hugging Face's models make them; B of cos and sin may be 1. A common
    factor in them (as of long-context scaling) is kept in both directions. The inputs are not written to and not kept.
    """
    return _Rotary.apply(q_BHTD, k_BKTD, cos_BTD, sin_BTD, rotate)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, rotate: Rotate
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.rotate = rotate
        return rotate(q, cos, sin, False), rotate(k, cos, sin, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return (
            ctx.rotate(grad_q, cos, sin, True),
            ctx.rotate(grad_k, cos, sin, True),
            None,
            None,
            None,
        )
