"""Attention of many suffixes behind one shared prefix, exactly, on a CPU: the prefix' keys and values stand once.

Suffixes are packed without padding into one row of N tokens, so no linear layer computes a token that is not there. Each query's
softmax falls into two parts, over the prefix (one large product for all queries together) and over its own suffix (causal, padded
for this step only); the two are merged by their log-sum-exps, as in Hydragen (Juravsky et al. 2024, arXiv 2402.05099).

Shapes: N packed tokens, P prefix tokens, B suffixes of at most T tokens, H heads, K key-value heads, D head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "ift_scale_shared_prefix"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class PackedSuffixes:
    """Where each of B suffixes lies among the N packed tokens; hands the layers the prefix, or takes it from them."""

    def __init__(self, lengths: Sequence[int], prefix: dict[int, tuple[Tensor, Tensor]], prefix_length: int):
        self.prefix, self.prefix_length = prefix, prefix_length
        self.lengths = torch.tensor(lengths)
        width = max(lengths)
        starts = self.lengths.cumsum(0) - self.lengths
        self.inside_BT = torch.arange(width) < self.lengths[:, None]
        # Padded places read token 0; causality keeps them from every real query, and their own outputs are dropped.
        self.source_BT = torch.where(self.inside_BT, starts[:, None] + torch.arange(width), 0)
        self.positions_N = prefix_length + (torch.arange(width).expand(len(lengths), -1))[self.inside_BT]
        self._ends_B = starts + self.lengths

    def last_rows(self, counts: Tensor) -> Tensor:
        """Places among the N of each suffix' last `counts` (shape (B,)) tokens."""
        return torch.cat([torch.arange(end - n, end) for end, n in zip(self._ends_B.tolist(), counts.tolist(), strict=True)])

    def attend(self, layer: int, q_1HND: Tensor, k_1KND: Tensor, v_1KND: Tensor, scale: float) -> Tensor:
        """Attention output, shape (1, N, H, D)."""
        groups = q_1HND.shape[1] // k_1KND.shape[1]
        own_HND, own_lse_HN = self._within(q_1HND, k_1KND, v_1KND, groups, scale)
        if self.prefix_length == 0:
            return own_HND.transpose(0, 1)[None]
        q_1KMD = q_1HND.reshape(1, k_1KND.shape[1], -1, q_1HND.shape[-1])  # M = groups * N: no key is copied for a group
        shared, shared_lse = _flash(q_1KMD, *self.prefix[layer], 0.0, False, scale=scale)
        shared_HND, shared_lse_HN = shared.reshape(own_HND.shape), shared_lse.reshape(own_lse_HN.shape)
        share_HN1 = torch.sigmoid(shared_lse_HN - own_lse_HN)[..., None].to(own_HND.dtype)
        return torch.lerp(own_HND, shared_HND, share_HN1).transpose(0, 1)[None]

    def _within(self, q_1HND: Tensor, k_1KND: Tensor, v_1KND: Tensor, groups: int, scale: float) -> tuple[Tensor, Tensor]:
        """Each suffix' attention to itself: output (H, N, D) and log-sum-exp (H, N)."""
        q_BHTD = q_1HND[0][:, self.source_BT].transpose(0, 1)
        k_BHTD, v_BHTD = (x[0][:, self.source_BT].transpose(0, 1).repeat_interleave(groups, 1) for x in (k_1KND, v_1KND))
        out_BHTD, lse_BHT = _flash(q_BHTD, k_BHTD, v_BHTD, 0.0, True, scale=scale)
        return out_BHTD.transpose(0, 1)[:, self.inside_BT], lse_BHT.transpose(0, 1)[:, self.inside_BT]


class PrefixRecorder:
    """Plain causal attention over one prompt that keeps each layer's keys and values, shape (1, K, P, D)."""

    def __init__(self) -> None:
        self.prefix: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, q_1HPD: Tensor, k_1KPD: Tensor, v_1KPD: Tensor, scale: float) -> Tensor:
        self.prefix[layer] = k_1KPD.contiguous(), v_1KPD.contiguous()
        groups = q_1HPD.shape[1] // k_1KPD.shape[1]
        k_1HPD, v_1HPD = (x.repeat_interleave(groups, 1) for x in (k_1KPD, v_1KPD))
        out_1HPD, _ = _flash(q_1HPD, k_1HPD, v_1HPD, 0.0, True, scale=scale)
        return out_1HPD.transpose(1, 2)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, shared: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: `shared` (PackedSuffixes or PrefixRecorder) comes from the call of the model."""
    return shared.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)  # who sees whom is decided above
