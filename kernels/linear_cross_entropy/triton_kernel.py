"""Softmax, loss and gradient of a chunk of logits in one Triton kernel, between matrix products.

The three matrix products stay with cuBLAS, which runs products of this size near the device's peak.
The softmax cannot be fused into the first one, because it needs a row's maximum and sum over the
whole vocabulary. Plain PyTorch makes five passes over the logits between the products; this kernel
reads them twice and writes them once.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from ift_scale_kernels.linear_cross_entropy import chunked
from torch import Tensor

BLOCK = 8192


@triton.jit
def _capped(logits, softcap):
    # tanh(x) = 2 sigmoid(2x) - 1: Triton has no tanh, and its interpreter lacks CUDA's.
    return softcap * (2 * tl.sigmoid(2 * logits / softcap) - 1)


@triton.jit
def _cross_entropy(
    logits_ptr,
    labels_ptr,
    scales_ptr,
    losses_ptr,
    gradient_ptr,
    logits_stride,
    gradient_stride,
    vocabulary,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    label = tl.load(labels_ptr + row)
    columns = tl.arange(0, BLOCK)
    # Online softmax: maximum and sum of exponentials in one read (Milakov and Gimelshein 2018,
    # arXiv 1805.02867).
    highest = float("-inf")
    total = 0.0
    at_label = 0.0
    for start in range(0, vocabulary, BLOCK):
        inside = start + columns < vocabulary
        logits = tl.load(logits_ptr + start + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_SOFTCAP:
            logits = _capped(logits, softcap)
        at_label += tl.sum(tl.where(start + columns == label, logits, 0.0), axis=0)
        logits = tl.where(inside, logits, float("-inf"))
        block_highest = tl.maximum(highest, tl.max(logits, axis=0))
        total = total * tl.exp(highest - block_highest) + tl.sum(
            tl.exp(logits - block_highest), axis=0
        )
        highest = block_highest
    normaliser = highest + tl.log(total)
    # A label outside the vocabulary makes the loss NaN rather than wrong.
    known = (label >= 0) & (label < vocabulary)
    tl.store(losses_ptr + row, tl.where(known, normaliser - at_label, float("nan")))
    if WANT_GRADIENT:
        gradient_ptr += row * gradient_stride
        scale = tl.load(scales_ptr + row)
        for start in range(0, vocabulary, BLOCK):
            inside = start + columns < vocabulary
            logits = tl.load(logits_ptr + start + columns, mask=inside, other=0.0).to(tl.float32)
            slope = scale
            if HAS_SOFTCAP:
                logits = _capped(logits, softcap)
                slope = scale * (1 - (logits / softcap) * (logits / softcap))
            gradient = slope * (
                tl.exp(logits - normaliser) - tl.where(start + columns == label, 1.0, 0.0)
            )
            tl.store(
                gradient_ptr + start + columns,
                gradient.to(gradient_ptr.dtype.element_ty),
                mask=inside,
            )


def row_step(
    logits_CV: Tensor,
    labels_C: Tensor,
    scales_C: Tensor,
    softcap: float | None,
    gradient_CV: Tensor | None,
) -> Tensor:
    """Implements `chunked.RowStep` with one program per row, in float32 throughout."""
    num_rows, vocabulary = logits_CV.shape
    losses_C = torch.empty(num_rows, dtype=torch.float32, device=logits_CV.device)
    out_CV = logits_CV if gradient_CV is None else gradient_CV
    block = min(BLOCK, triton.next_power_of_2(vocabulary))
    _cross_entropy[(num_rows,)](
        logits_CV,
        labels_C.contiguous(),
        scales_C.contiguous(),
        losses_C,
        out_CV,
        logits_CV.stride(0),
        out_CV.stride(0),
        vocabulary,
        softcap or 1.0,
        HAS_SOFTCAP=softcap is not None,
        WANT_GRADIENT=gradient_CV is not None,
        BLOCK=block,
        num_warps=16 if block >= 4096 else 4,
    )
    return losses_C


linear_cross_entropy = partial(chunked.linear_cross_entropy, row_step)
