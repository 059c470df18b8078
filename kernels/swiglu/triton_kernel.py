"""The gated product in Triton: one pass forward and one backward, in float32."""

from functools import partial

import torch
import triton
import triton.language as tl
from ift_scale_kernels.swiglu import autograd
from ift_scale_kernels.swiglu.autograd import Activation
from torch import Tensor

BLOCK = 2048


@triton.jit
def _activated(gate, SILU: tl.constexpr):
    """Returns the activation and its derivative."""
    if SILU:
        share = tl.sigmoid(gate)
        value = gate * share
        slope = share * (1 + gate * (1 - share))
    else:
        # 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
        # (Hendrycks and Gimpel 2016, arXiv 1606.08415)
        share = tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
        value = gate * share
        slope = share * (1 + gate * (1 - share) * 1.5957691216057308 * (1 + 0.134145 * gate * gate))
    return value, slope


@triton.jit
def _forward(gate_ptr, up_ptr, out_ptr, count, SILU: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    gate = tl.load(gate_ptr + index, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + index, mask=inside, other=0.0).to(tl.float32)
    value, _ = _activated(gate, SILU)
    tl.store(out_ptr + index, (value * up).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad_ptr,
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    count,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    grad = tl.load(grad_ptr + index, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + index, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + index, mask=inside, other=0.0).to(tl.float32)
    value, slope = _activated(gate, SILU)
    tl.store(
        grad_gate_ptr + index, (grad * up * slope).to(grad_gate_ptr.dtype.element_ty), mask=inside
    )
    tl.store(grad_up_ptr + index, (grad * value).to(grad_up_ptr.dtype.element_ty), mask=inside)


def forward(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """Implements `autograd.Forward`."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    if gate.numel():
        grid = (triton.cdiv(gate.numel(), BLOCK),)
        _forward[grid](gate, up, out, gate.numel(), SILU=activation == "silu", BLOCK=BLOCK)
    return out


def backward(
    grad: Tensor, gate: Tensor, up: Tensor, activation: Activation
) -> tuple[Tensor, Tensor]:
    """Implements `autograd.Backward`."""
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    if gate.numel():
        grid = (triton.cdiv(gate.numel(), BLOCK),)
        _backward[grid](
            grad, gate, up, grad_gate, grad_up, gate.numel(), SILU=activation == "silu", BLOCK=BLOCK
        )
    return grad_gate, grad_up


swiglu = partial(autograd.swiglu, forward, backward)
