"""The rotation in Triton: reads a token's cosines and sines once for up to 16 heads."""

from functools import partial

import torch
import triton
import triton.language as tl
from ift_scale_kernels.rotary import autograd
from torch import Tensor


@triton.jit
def _rotate(
    x_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    x_stride_b,
    x_stride_h,
    x_stride_t,
    cos_stride_b,
    cos_stride_t,
    sin_stride_b,
    sin_stride_t,
    num_heads,
    num_tokens,
    half,
    sign,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // num_tokens, row % num_tokens
    columns = tl.arange(0, BLOCK_D)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = columns < half
    cos = tl.load(
        cos_ptr + batch * cos_stride_b + token * cos_stride_t + columns, mask=inside, other=0.0
    ).to(tl.float32)[None, :]
    sin = tl.load(
        sin_ptr + batch * sin_stride_b + token * sin_stride_t + columns, mask=inside, other=0.0
    ).to(tl.float32)[None, :]
    sin = sin * sign
    mask = (heads < num_heads)[:, None] & inside[None, :]
    source = (
        x_ptr
        + batch * x_stride_b
        + token * x_stride_t
        + heads[:, None] * x_stride_h
        + columns[None, :]
    )
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=mask, other=0.0).to(tl.float32)
    target = out_ptr + (row * num_heads + heads[:, None]) * (2 * half) + columns[None, :]
    tl.store(target, (first * cos - second * sin).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(target + half, (second * cos + first * sin).to(out_ptr.dtype.element_ty), mask=mask)


def rotate(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, back: bool) -> Tensor:
    """Implements `autograd.Rotate`.

    The result is contiguous as (B, T, H, D), like projections and the output of attention.
    """
    batch, heads, tokens, size = x_BHTD.shape
    if x_BHTD.stride(-1) != 1:
        x_BHTD = x_BHTD.contiguous()
    cos_BTD, sin_BTD = (x.contiguous().expand(batch, -1, -1) for x in (cos_BTD, sin_BTD))
    out_BTHD = torch.empty(batch, tokens, heads, size, dtype=x_BHTD.dtype, device=x_BHTD.device)
    if out_BTHD.numel():
        block = min(16, triton.next_power_of_2(heads))
        _rotate[(batch * tokens, triton.cdiv(heads, block))](
            x_BHTD,
            cos_BTD,
            sin_BTD,
            out_BTHD,
            *x_BHTD.stride()[:3],
            *cos_BTD.stride()[:2],
            *sin_BTD.stride()[:2],
            heads,
            tokens,
            size // 2,
            -1.0 if back else 1.0,
            BLOCK_H=block,
            BLOCK_D=triton.next_power_of_2(size // 2),
        )
    return out_BTHD.transpose(1, 2)


rotary = partial(autograd.rotary, rotate)
