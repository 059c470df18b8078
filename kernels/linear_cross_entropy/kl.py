"""Cross-entropy together with the divergence from a base model, KL(base || model), chunk by chunk.

The base's distribution p is either whole, computed in the chunk from a frozen copy's hidden states,
or its K most probable tokens with one bucket for all others. With the model's distribution q, the
divergence in nats of a row is sum(p_i log(p_i / q_i)), over the tokens or over the K + 1 buckets.
Its gradient with respect to the logits is q - p; within the last bucket, p is spread as q is.

Lumping tokens into a bucket cannot raise the divergence (the log-sum inequality), and it lowers it
by p_r KL(p' || q'), where p_r is the bucket's probability under p, and p' and q' are the
distributions within it. By Hoeffding's lemma that is at most p_r W^2 / 8, where W is the range of
log(p_i / q_i) over the bucket's tokens.

Shapes: R rows, C rows of a chunk, V vocabulary, D hidden size, K tokens.
"""

from dataclasses import dataclass

import torch
from ift_scale_kernels.linear_cross_entropy import chunked
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class TopK:
    """The K most probable tokens of each row with their log-probabilities in nats, and the
    log-probability of all others together (minus infinity if there are none)."""

    ids_RK: Tensor
    logprobs_RK: Tensor
    rest_R: Tensor


@dataclass(frozen=True)
class HiddenRows:
    """A frozen copy's last hidden states of the rows, and its head."""

    hidden_RD: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None


Base = TopK | HiddenRows


def _logits(
    rows: HiddenRows, chunk: slice, softcap: float | None, out: Tensor | None = None
) -> Tensor:
    """Returns the logits of a chunk, in the first rows of `out` if it is given."""
    exact = torch.promote_types(rows.hidden_RD.dtype, torch.float32)
    hidden, weight = rows.hidden_RD[chunk], rows.weight_VD
    if hidden.device.type == "cpu":
        hidden, weight = hidden.to(exact), weight.to(exact)
    if out is None:
        out = torch.empty(len(hidden), len(weight), dtype=exact, device=hidden.device)
    logits_CV = out[: len(hidden)]
    chunked._product(hidden, weight.t(), logits_CV)
    if rows.bias_V is not None:
        logits_CV += rows.bias_V
    return logits_CV if softcap is None else logits_CV.div_(softcap).tanh_().mul_(softcap)


def top_k_of(logits_RV: Tensor, k: int) -> TopK:
    """Returns the top-k form of the distributions softmax(logits_RV); overwrites the logits."""
    logits_RV -= logits_RV.amax(-1, keepdim=True)
    top_RK, ids_RK = logits_RV.topk(min(k, logits_RV.shape[1]))
    # Not 1 minus the sum of the top, which would cancel.
    rest_R = logits_RV.exp_().scatter_(1, ids_RK, 0.0).sum(-1)
    normaliser_R = (rest_R + top_RK.exp().sum(-1)).log()
    return TopK(ids_RK, top_RK - normaliser_R[:, None], rest_R.log() - normaliser_R)


@torch.no_grad()
def linear_top_k(
    hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, softcap: float | None, k: int
) -> TopK:
    """Returns the top-k form of the head's distributions, a chunk of rows at a time."""
    rows = HiddenRows(hidden_RD, weight_VD, bias_V)
    size = chunked.default_chunk_rows(len(hidden_RD), len(weight_VD), hidden_RD.device)
    starts = range(0, len(hidden_RD), size)
    parts = [top_k_of(_logits(rows, slice(s, s + size), softcap), k) for s in starts]
    return TopK(*(torch.cat(one) for one in zip(*(vars(p).values() for p in parts), strict=True)))


def divergence(logits_RV: Tensor, base: TopK) -> Tensor:
    """Returns each row's divergence over the K + 1 buckets, differentiable: the reference."""
    logprobs_RV = logits_RV.log_softmax(-1)
    p_RK, p_R = base.logprobs_RK.exp(), base.rest_R.exp()
    others_RV = logprobs_RV.scatter(1, base.ids_RK, -torch.inf)
    rest_R = others_RV.exp().sum(-1).clamp_min(_TINY).log()
    top_R = (p_RK * (base.logprobs_RK - logprobs_RV.gather(1, base.ids_RK))).sum(-1)
    return top_R + torch.where(p_R > 0, p_R * (base.rest_R.clamp_min(-1e4) - rest_R), 0.0)


def linear_cross_entropy_kl(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    labels_R: Tensor,
    weights_R: Tensor,
    kl_weights_R: Tensor,
    base: Base,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (loss, losses_R, divergences_R), the last two detached, in nats.

    loss = sum(weights_R * losses_R) + sum(kl_weights_R * divergences_R), differentiable; losses_R
    are cross-entropies. Logits and chunks as in `chunked.linear_cross_entropy`.
    """
    exact = torch.promote_types(hidden_RD.dtype, torch.float32)
    losses_R = torch.empty(len(hidden_RD), dtype=exact, device=hidden_RD.device)
    divergences_R = torch.empty_like(losses_R)
    weights_R, kl_weights_R = weights_R.to(exact), kl_weights_R.to(exact)
    buffers: list[Tensor] = []
    done = 0  # rows of the chunks before, which come in order

    def step(
        logits_CV: Tensor,
        labels_C: Tensor,
        ones_C: Tensor,
        softcap: float | None,
        gradient_CV: Tensor | None,
    ) -> Tensor:
        nonlocal done
        if not buffers and isinstance(base, HiddenRows):
            # Reused by all chunks, of which the first is the largest.
            buffers.extend(torch.empty_like(logits_CV) for _ in range(2))
        chunk = slice(done, done + len(labels_C))
        done = chunk.stop
        losses_R[chunk], divergences_R[chunk] = _chunk(
            logits_CV,
            labels_C,
            weights_R[chunk],
            kl_weights_R[chunk],
            base,
            chunk,
            softcap,
            gradient_CV,
            buffers,
        )
        return weights_R[chunk] * losses_R[chunk] + kl_weights_R[chunk] * divergences_R[chunk]

    # The step's losses are weighted already, so the chunks are summed with weights of 1.
    loss, _ = chunked.linear_cross_entropy(
        step, hidden_RD, weight_VD, labels_R, bias_V=bias_V, softcap=softcap, chunk_rows=chunk_rows
    )
    return loss, losses_R, divergences_R


def _chunk(
    logits_CV: Tensor,
    labels_C: Tensor,
    weights_C: Tensor,
    kl_weights_C: Tensor,
    base: Base,
    chunk: slice,
    softcap: float | None,
    gradient_CV: Tensor | None,
    buffers: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Returns (losses_C, divergences_C); writes the gradient of their weighted sum."""
    slope_CV = None
    if softcap is not None:
        logits_CV.div_(softcap).tanh_()
        slope_CV = None if gradient_CV is None else logits_CV.square().neg_().add_(1)
        logits_CV.mul_(softcap)
    labels_C1 = labels_C[:, None]
    logits_CV.sub_(logits_CV.amax(-1, keepdim=True))
    label_C = logits_CV.gather(1, labels_C1)[:, 0]
    both_C = weights_C + kl_weights_C
    if isinstance(base, TopK):
        ids_CK, base_CK = base.ids_RK[chunk], base.logprobs_RK[chunk]
        rest_C = base.rest_R[chunk]
        top_CK = logits_CV.gather(1, ids_CK)
        # The sums over the top and over the rest apart: their difference would cancel.
        others_C = logits_CV.exp_().scatter_(1, ids_CK, 0.0).sum(-1)
        exp_CK = top_CK.exp()
        total_C = others_C + exp_CK.sum(-1)
        normaliser_C = total_C.log()
        p_CK, p_C, others_C = base_CK.exp(), rest_C.exp(), others_C.clamp_min(_TINY)
        # clamp_min: 0 * log(0) is 0 for a base without any rest.
        last_C = p_C * (rest_C.clamp_min(-1e4) - others_C.log() + normaliser_C)
        kl_C = (p_CK * (base_CK - top_CK)).sum(-1) + normaliser_C * p_CK.sum(-1) + last_C
        if gradient_CV is not None:
            # q (w + v) - v p, where p of the rest is p_C spread as q.
            logits_CV.mul_((both_C / total_C - kl_weights_C * p_C / others_C)[:, None])
            top = exp_CK * (both_C / total_C)[:, None] - kl_weights_C[:, None] * p_CK
            logits_CV.scatter_(1, ids_CK, top)
    else:
        base_CV, exp_CV = (buffer[: len(logits_CV)] for buffer in buffers)
        _logits(base, chunk, softcap, base_CV)
        base_CV.sub_(base_CV.amax(-1, keepdim=True))
        torch.exp(base_CV, out=exp_CV)
        base_total_C = exp_CV.sum(-1)
        # p (log p - log q), of which the difference of the normalisers is the same for all tokens.
        differences_C = torch.linalg.vecdot(exp_CV, base_CV.sub_(logits_CV)) / base_total_C
        total_C = logits_CV.exp_().sum(-1)
        normaliser_C = total_C.log()
        kl_C = differences_C - base_total_C.log() + normaliser_C
        if gradient_CV is not None:
            logits_CV.mul_((both_C / total_C)[:, None])
            logits_CV.addcmul_(exp_CV, (kl_weights_C / base_total_C)[:, None], value=-1)
    if gradient_CV is not None:
        logits_CV.scatter_add_(1, labels_C1, -weights_C[:, None])
        if slope_CV is not None:
            logits_CV.mul_(slope_CV)
        if gradient_CV.data_ptr() != logits_CV.data_ptr():
            gradient_CV.copy_(logits_CV)
    return normaliser_C - label_C, kl_C
