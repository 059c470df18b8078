"""The gated product's autograd function: keeps gate and up, and recomputes the activation."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Activation = Literal["silu", "gelu_tanh"]
Forward = Callable[[Tensor, Tensor, Activation], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, Activation], tuple[Tensor, Tensor]]
"""(grad, gate, up, activation) -> grad_gate, grad_up."""


def swiglu(
    forward: Forward, backward: Backward, gate: Tensor, up: Tensor, activation: Activation = "silu"
) -> Tensor:
    """Returns activation(gate) * up, elementwise, for tensors of one shape.

    `silu`: x sigmoid(x). `gelu_tanh`: the tanh approximation of GELU, as in Gemma.
    """
    return _GatedProduct.apply(gate, up, activation, forward, backward)


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        activation: Activation,
        forward: Forward,
        backward: Backward,
    ) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation, ctx.backward_pass = activation, backward
        return forward(gate, up, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*ctx.backward_pass(grad, *ctx.saved_tensors, ctx.activation), None, None, None)
