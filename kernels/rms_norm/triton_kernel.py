"""RMSNorm in Triton: reads and writes each row once, with the residual addition fused."""

from functools import partial

import torch
import triton
import triton.language as tl
from ift_scale_kernels.rms_norm import autograd
from torch import Tensor


@triton.jit
def _forward(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    total_ptr,
    rstd_ptr,
    size,
    eps,
    offset,
    HAS_RESIDUAL: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    index = row * size + columns
    x = tl.load(x_ptr + index, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + index, mask=inside, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(total_ptr + index, x, mask=inside)
    dtype = x.dtype
    x = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / size + eps)
    tl.store(rstd_ptr + row, rstd)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    y = x * rstd
    if not HAS_OFFSET:
        y = y.to(dtype).to(tl.float32)
    y = y * (offset + weight)
    tl.store(y_ptr + index, y.to(dtype), mask=inside)


@triton.jit
def _backward(
    grad_y_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    grad_x_ptr,
    partial_ptr,
    num_rows,
    size,
    offset,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    scale = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32) + offset
    grad_weight = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(program, num_rows, tl.num_programs(0)):
        index = row * size + columns
        rstd = tl.load(rstd_ptr + row)
        normed = tl.load(x_ptr + index, mask=inside, other=0.0).to(tl.float32) * rstd
        grad_y = tl.load(grad_y_ptr + index, mask=inside, other=0.0).to(tl.float32)
        grad_weight += grad_y * normed
        grad = grad_y * scale
        mean = tl.sum(grad * normed, axis=0) / size
        grad_x = rstd * (grad - normed * mean)
        tl.store(grad_x_ptr + index, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
    tl.store(partial_ptr + program * size + columns, grad_weight, mask=inside)


def _launch(size: int) -> dict[str, int]:
    block = triton.next_power_of_2(size)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}


def forward(
    x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float, offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Implements `autograd.Forward` with one program per row."""
    num_rows, size = x_TD.shape
    x_TD = x_TD.contiguous()
    has_residual = residual_TD is not None
    y_TD = torch.empty_like(x_TD)
    total_TD = torch.empty_like(x_TD) if has_residual else x_TD
    rstd_T = torch.empty(num_rows, dtype=torch.float32, device=x_TD.device)
    if num_rows:
        residual = residual_TD.contiguous() if residual_TD is not None else x_TD
        switches = {"HAS_RESIDUAL": has_residual, "HAS_OFFSET": offset != 0}
        _forward[(num_rows,)](
            x_TD,
            residual,
            weight_D,
            y_TD,
            total_TD,
            rstd_T,
            size,
            eps,
            offset,
            **switches,
            **_launch(size),
        )
    return y_TD, total_TD, rstd_T


def backward(
    grad_y_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T: Tensor, offset: float
) -> tuple[Tensor, Tensor]:
    """Implements `autograd.Backward`.

    Each program accumulates the weight's gradient over its rows; the partial sums are added at the
    end.
    """
    num_rows, size = x_TD.shape
    grad_x_TD = torch.empty_like(x_TD)
    is_gpu = x_TD.device.type == "cuda"
    limit = 2 * torch.cuda.get_device_properties(x_TD.device).multi_processor_count if is_gpu else 4
    num_programs = min(limit, num_rows)
    partial_PD = torch.empty(num_programs, size, dtype=torch.float32, device=x_TD.device)
    if num_rows:
        _backward[(num_programs,)](
            grad_y_TD.contiguous(),
            x_TD,
            weight_D,
            rstd_T,
            grad_x_TD,
            partial_PD,
            num_rows,
            size,
            offset,
            **_launch(size),
        )
    return grad_x_TD, partial_PD.sum(0).to(weight_D.dtype)


rms_norm = partial(autograd.rms_norm, forward, backward)
