"""The gated product in plain PyTorch, with PyTorch's own derivatives of the activations."""

from functools import partial

import torch
import torch.nn.functional as F
from ift_scale_kernels.swiglu import autograd
from ift_scale_kernels.swiglu.autograd import Activation
from torch import Tensor


def _activated(gate: Tensor, activation: Activation) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


def forward(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """Implements `autograd.Forward`."""
    return _activated(gate, activation).mul_(up)


def backward(
    grad: Tensor, gate: Tensor, up: Tensor, activation: Activation
) -> tuple[Tensor, Tensor]:
    """Implements `autograd.Backward`."""
    grad_gate = grad * up
    if activation == "silu":
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
    else:
        torch.ops.aten.gelu_backward.grad_input(
            grad_gate, gate, approximate="tanh", grad_input=grad_gate
        )
    return grad_gate, _activated(gate, activation).mul_(grad)


swiglu = partial(autograd.swiglu, forward, backward)
