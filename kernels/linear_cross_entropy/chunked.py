"""Head and cross-entropy for one chunk of rows at a time, with all gradients in the same pass.

The gradient of a cross-entropy is known as soon as its logits are, up to the upstream scalar. So
the forward pass computes it and drops the logits, and the backward pass multiplies by the scalar
(Liger-Kernel, Hsu et al. 2024, arXiv 2410.10989). A `RowStep` turns a chunk's logits into losses
and gradients; the reference and the Triton kernel differ only in it.

Shapes: R rows, C rows of a chunk, V vocabulary, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of a chunk's float32 logits. On a CPU, matrix products are slower in smaller chunks and
# softmax is slower in larger ones (README.md).
GPU_BYTES, CPU_BYTES = 256 * 2**20, 64 * 2**20

RowStep = Callable[[Tensor, Tensor, Tensor, float | None, Tensor | None], Tensor]
"""(logits_CV, labels_C, scales_C, softcap, gradient_CV) -> losses_C in nats.

Caps the logits. If `gradient_CV` is not None, writes into it scales_C times the derivative of each
row's loss with respect to the logits before the cap. `gradient_CV` may be `logits_CV`, which is
overwritten in any case.
"""


def default_chunk_rows(num_rows: int, vocabulary: int, device: torch.device) -> int:
    """Returns the rows per chunk: as many as the byte limit allows, about equal for all chunks."""
    limit = max(1, (GPU_BYTES if device.type == "cuda" else CPU_BYTES) // (4 * vocabulary))
    return max(1, -(-num_rows // -(-num_rows // limit))) if num_rows else 1


def linear_cross_entropy(
    step: RowStep,
    hidden_RD: Tensor,
    weight_VD: Tensor,
    labels_R: Tensor,
    weights_R: Tensor | None = None,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns (sum(weights_R * losses_R), losses_R): a differentiable scalar and detached losses.

    Logits are z = logit_scale * (hidden_RD @ weight_VD.T + bias_V), or softcap * tanh(z / softcap)
    with a cap (Gemma 2). Losses are in nats, float32, or float64 for float64 hidden states. Labels
    are in [0, V); there is no ignore index, so pass supervised rows only. Without rows, the loss
    and its gradients are 0. `weights_R` gets no gradient.
    """
    assert weights_R is None or not weights_R.requires_grad
    num_rows = len(hidden_RD)
    rows = chunk_rows or default_chunk_rows(num_rows, len(weight_VD), hidden_RD.device)
    if weights_R is None:
        weights_R = torch.ones(num_rows, device=hidden_RD.device)
    weights_R = weights_R.to(torch.promote_types(hidden_RD.dtype, torch.float32))
    with_gradient = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(
        hidden_RD,
        weight_VD,
        bias_V,
        labels_R,
        weights_R,
        step,
        softcap,
        logit_scale,
        rows,
        with_gradient,
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_R: Tensor,
        weights_R: Tensor,
        step: RowStep,
        softcap: float | None,
        logit_scale: float,
        rows: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        needed = [with_gradient and needs for needs in ctx.needs_input_grad[:3]]
        losses_R, gradients = _pass(
            step,
            hidden_RD,
            weight_VD,
            bias_V,
            labels_R,
            weights_R * logit_scale,
            softcap,
            logit_scale,
            rows,
            needed,
        )
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses_R)
        ctx.set_materialize_grads(False)
        return torch.dot(weights_R, losses_R), losses_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 10
        # Not in place, because a graph may be traversed twice. The forward pass, with its float32
        # sum, needed more memory than this.
        scaled = [None if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors]
        return (*scaled, *(None,) * 7)


def _pass(
    step: RowStep,
    hidden_RD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels_R: Tensor,
    scales_R: Tensor,
    softcap: float | None,
    logit_scale: float,
    rows: int,
    needed: list[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Returns losses_R and the gradients of hidden_RD, weight_VD and bias_V, None if not needed."""
    # `exact`: dtype of logits and losses; `matrix`: dtype of the inputs of matrix products.
    exact, matrix = scales_R.dtype, hidden_RD.dtype
    if hidden_RD.device.type == "cpu":
        # bfloat16 products take 1.7 times as long as float32 on a CPU without matrix units.
        matrix = exact
    weight = weight_VD.to(matrix)
    num_rows, device, vocabulary = len(hidden_RD), hidden_RD.device, len(weight_VD)
    logits_buffer = torch.empty(min(rows, num_rows), vocabulary, dtype=exact, device=device)
    gradient_buffer = (
        logits_buffer if matrix == exact else torch.empty_like(logits_buffer, dtype=matrix)
    )
    losses_R = torch.empty(num_rows, dtype=exact, device=device)
    grad_hidden = torch.empty_like(hidden_RD) if needed[0] else None
    grad_weight = grad_bias = None
    if needed[1]:
        # Several chunks are accumulated in the exact dtype.
        grad_weight = torch.zeros_like(weight_VD, dtype=matrix if num_rows <= rows else exact)
    if needed[2] and bias_V is not None:
        grad_bias = torch.zeros_like(bias_V, dtype=exact)
    for start in range(0, num_rows, rows):
        chunk = slice(start, start + rows)
        hidden = hidden_RD[chunk].to(matrix)
        logits = logits_buffer[: len(hidden)]
        gradient = gradient_buffer[: len(hidden)] if any(needed) else None
        _product(hidden, weight.t(), logits)
        if bias_V is not None:
            logits += bias_V
        if logit_scale != 1.0:
            logits *= logit_scale
        losses_R[chunk] = step(logits, labels_R[chunk], scales_R[chunk], softcap, gradient)
        if gradient is None:
            continue
        if grad_hidden is not None:
            _product(gradient, weight, grad_hidden[chunk])
        if grad_weight is not None:
            _add_product(gradient.t(), hidden, grad_weight)
        if grad_bias is not None:
            grad_bias += gradient.sum(0, dtype=exact)
    cast = [(grad_hidden, hidden_RD), (grad_weight, weight_VD), (grad_bias, bias_V)]
    return losses_R, [None if g is None or like is None else g.to(like.dtype) for g, like in cast]


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Computes out = left @ right, accumulated in float32 whatever the dtype of `out`."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    elif left.dtype in (torch.bfloat16, torch.float16):
        # `out_dtype` exists on CUDA only, and only there are products in a 16-bit dtype.
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        out.copy_(left @ right)


def _add_product(left: Tensor, right: Tensor, total: Tensor) -> None:
    """Computes total += left @ right."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
