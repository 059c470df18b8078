"""The rotation's autograd function. It keeps cosines and sines only: its derivative rotates back.

Shapes: B sequences, H heads, T tokens, D head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Rotate = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""(x_BHTD, cos_BTD, sin_BTD, back) -> x_BHTD rotated by the angles, or by their negatives.

x is not modified.
"""


def rotary(
    rotate: Rotate, q_BHTD: Tensor, k_BKTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns x * cos + (-x2, x1) * sin, with x1, x2 the halves of the last dimension, for q and k.

    Both halves of cos and sin have the same D / 2 angles, as in Hugging Face's models; their B may
    be 1. A common factor in them (of long-context scaling) applies to both directions. The inputs
    are neither modified nor kept.
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
