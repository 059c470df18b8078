"""Exact attention of many suffixes to one shared prefix on a CPU, storing the prefix K/V once.

Suffixes are packed without padding into one row of N tokens, so linear layers compute no padding.
Suffixes that begin alike, such as the options of a question, share the packed tokens of their
common beginning: the tokens form a tree, and the state of one depends on the path to it only.
Each query's softmax is split into two parts: one over the prefix (a single large product for all
queries) and one over its own suffix (causal, padded for this step only). The two are merged by
their log-sum-exps, as in Hydragen (Juravsky et al. 2024, arXiv 2402.05099).

Shapes: N packed tokens, P prefix tokens, B suffixes of at most T tokens, R scored rows (at most C
per suffix), H heads, K key-value heads, D head size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "ift_scale_shared_prefix"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class PackedSuffixes:
    """The layout of B suffixes among N packed tokens, and the prefix that all of them follow.

    `counts` gives how many of each suffix's last positions are scored. The last layer computes only
    these R rows (`LastRowsLayer`). `ids_N` are the packed tokens, `positions_N` their positions.
    """

    def __init__(
        self,
        suffixes: Sequence[list[int]],
        counts: Sequence[int],
        prefix: dict[int, tuple[Tensor, Tensor]],
        prefix_length: int,
    ):
        self.prefix, self.prefix_length = prefix, prefix_length
        lengths_B, counts_B = torch.tensor([*map(len, suffixes)]), torch.tensor(counts)
        steps_T, steps_C = torch.arange(int(lengths_B.max())), torch.arange(max(counts))
        inside_BT = steps_T < lengths_B[:, None]
        nodes, self.ids_N = _tree(suffixes)
        # Padding reads token 0. Causality hides it from every real query, and its outputs are
        # dropped.
        self.source_BT = torch.zeros(inside_BT.shape, dtype=torch.long)
        self.source_BT[inside_BT] = nodes
        # A token's place in the first suffix that has it. Numbers increase row by row, so these
        # places are in the order of the packed tokens.
        highest = torch.cat([nodes.new_tensor([-1]), nodes.cummax(0).values])[:-1]
        self.first_BT = inside_BT.clone()
        self.first_BT[inside_BT] = nodes > highest
        self.positions_N = prefix_length + steps_T.expand(len(suffixes), -1)[self.first_BT]
        # The scored rows, left-padded to C per suffix, and the keys each of them may attend to.
        self.scored_BC = steps_C >= max(counts) - counts_B[:, None]
        position_BC = lengths_B[:, None] - max(counts) + steps_C
        self.row_source_BC = self.source_BT.gather(1, position_BC.clamp(min=0))
        self.rows_R = self.row_source_BC[self.scored_BC]
        self.seen_BCT = (steps_T <= position_BC[..., None]) & inside_BT[:, None]
        # A padded row attends to every key, because a softmax over nothing would be NaN. It is
        # dropped later.
        self.seen_BCT |= ~self.scored_BC[..., None]

    def attend(
        self, layer: int, q_1HND: Tensor, k_1KND: Tensor, v_1KND: Tensor, scale: float
    ) -> Tensor:
        """Returns the attention output, shape (1, N, H, D)."""
        # Each suffix's attention to itself, padded to (B, H, T, D); padding is dropped right after.
        q_BHTD = q_1HND[0][:, self.source_BT].transpose(0, 1)
        out_BHTD, lse_BHT = _flash(
            q_BHTD, *self._keys(k_1KND, v_1KND, q_1HND.shape[1]), 0.0, True, scale=scale
        )
        own_HND, own_lse_HN = (x.transpose(0, 1)[:, self.first_BT] for x in (out_BHTD, lse_BHT))
        return self._with_prefix(layer, q_1HND, own_HND, own_lse_HN, scale)

    def attend_rows(
        self, layer: int, q_1HRD: Tensor, k_1KND: Tensor, v_1KND: Tensor, scale: float
    ) -> Tensor:
        """Returns the attention output of the scored rows only, shape (1, R, H, D)."""
        number_BC = torch.zeros_like(self.row_source_BC)
        number_BC[self.scored_BC] = torch.arange(len(self.rows_R))
        q_BHCD = q_1HRD[0][:, number_BC].transpose(0, 1)
        mask_B1CT = torch.zeros(self.seen_BCT.shape, dtype=q_BHCD.dtype).masked_fill_(
            ~self.seen_BCT, -torch.inf
        )[:, None]
        keys = self._keys(k_1KND, v_1KND, q_1HRD.shape[1])
        out_BHCD, lse_BHC = _flash(q_BHCD, *keys, 0.0, False, attn_mask=mask_B1CT, scale=scale)
        own_HRD, own_lse_HR = (x.transpose(0, 1)[:, self.scored_BC] for x in (out_BHCD, lse_BHC))
        return self._with_prefix(layer, q_1HRD, own_HRD, own_lse_HR, scale)

    def _keys(self, k_1KND: Tensor, v_1KND: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values of each suffix, padded, for every head: both (B, H, T, D)."""
        groups = heads // k_1KND.shape[1]
        k_BHTD, v_BHTD = (
            x[0][:, self.source_BT].transpose(0, 1).repeat_interleave(groups, 1)
            for x in (k_1KND, v_1KND)
        )
        return k_BHTD, v_BHTD

    def _with_prefix(
        self, layer: int, q_1HND: Tensor, own_HND: Tensor, own_lse_HN: Tensor, scale: float
    ) -> Tensor:
        """Merges attention to the own suffix with attention to the prefix, (1, N, H, D)."""
        if self.prefix_length == 0:
            return own_HND.transpose(0, 1)[None]
        k_1KPD, v_1KPD = self.prefix[layer]
        # Query heads of one key-value head become rows, so no key is copied: M = groups * N.
        q_1KMD = q_1HND.reshape(1, k_1KPD.shape[1], -1, q_1HND.shape[-1])
        shared, shared_lse = _flash(q_1KMD, k_1KPD, v_1KPD, 0.0, False, scale=scale)
        shared_HND, shared_lse_HN = (
            shared.reshape(own_HND.shape),
            shared_lse.reshape(own_lse_HN.shape),
        )
        # Softmax over both parts: the prefix has weight e^lse_p / (e^lse_p + e^lse_own).
        share_HN1 = torch.sigmoid(shared_lse_HN - own_lse_HN)[..., None].to(own_HND.dtype)
        return torch.lerp(own_HND, shared_HND, share_HN1).transpose(0, 1)[None]


def _tree(suffixes: Sequence[list[int]]) -> tuple[Tensor, list[int]]:
    """Numbers the distinct beginnings of the suffixes, each of which is a packed token.

    Returns the numbers of all tokens, suffix after suffix, and the N packed tokens' ids.
    """
    children: dict[tuple[int, int], int] = {}
    numbers: list[int] = []
    ids: list[int] = []
    for suffix in suffixes:
        node = -1
        for token in suffix:
            known = children.setdefault((node, token), len(ids))
            if known == len(ids):
                ids.append(token)
            node = known
            numbers.append(node)
    return torch.tensor(numbers), ids


class _KeysOnly:
    """Captures a layer's keys and values of all N tokens and computes no attention."""

    def attend(
        self, layer: int, q_1HND: Tensor, k_1KND: Tensor, v_1KND: Tensor, scale: float
    ) -> Tensor:
        self.keys = k_1KND, v_1KND
        return torch.zeros_like(q_1HND).transpose(1, 2)


class _ScoredRows:
    """Computes the attention of the scored rows to the keys of all tokens."""

    def __init__(self, packed: PackedSuffixes, keys: tuple[Tensor, Tensor]):
        self.packed, self.keys = packed, keys

    def attend(
        self, layer: int, q_1HRD: Tensor, k_1KRD: Tensor, v_1KRD: Tensor, scale: float
    ) -> Tensor:
        return self.packed.attend_rows(layer, q_1HRD, *self.keys, scale)


class LastRowsLayer(nn.Module):
    """A model's last layer, reduced to the scored rows.

    Keys and values come from all packed tokens. Only the scored rows pass attention and MLP.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)  # attributes the model reads

    def forward(
        self,
        hidden_states: Tensor,
        *,
        shared: PackedSuffixes,
        position_embeddings: Any,
        **kwargs: Any,
    ) -> Any:
        keys = _KeysOnly()
        last: Any = self.layer
        normed = last.input_layernorm(hidden_states)
        last.self_attn(
            hidden_states=normed, position_embeddings=position_embeddings, shared=keys, **kwargs
        )
        rows = shared.rows_R
        cos, sin = (x[:, rows] for x in position_embeddings)
        kwargs["position_ids"] = kwargs["position_ids"][:, rows]
        return self.layer(
            hidden_states[:, rows],
            position_embeddings=(cos, sin),
            shared=_ScoredRows(shared, keys.keys),
            **kwargs,
        )


@contextmanager
def last_layer_on_scored_rows(layers: nn.ModuleList) -> Iterator[None]:
    """Reduces the last layer to the scored rows; other passes run the model's own layer."""
    last = layers[-1]
    layers[-1] = LastRowsLayer(last)
    try:
        yield
    finally:
        layers[-1] = last


class PrefixRecorder:
    """Plain causal attention over one prompt, recording each layer's K/V, shape (1, K, P, D)."""

    def __init__(self) -> None:
        self.prefix: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(
        self, layer: int, q_1HPD: Tensor, k_1KPD: Tensor, v_1KPD: Tensor, scale: float
    ) -> Tensor:
        self.prefix[layer] = k_1KPD.contiguous(), v_1KPD.contiguous()
        groups = q_1HPD.shape[1] // k_1KPD.shape[1]
        k_1HPD, v_1HPD = (x.repeat_interleave(groups, 1) for x in (k_1KPD, v_1KPD))
        out_1HPD, _ = _flash(q_1HPD, k_1HPD, v_1HPD, 0.0, True, scale=scale)
        return out_1HPD.transpose(1, 2)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    shared: Any,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function; `shared` is one of the classes above.

    `shared` is passed to the model's forward call. Raises ValueError for a model whose attention
    has a term that these classes do not compute.
    """
    if _recorded and callable(attention_mask):
        _recorded[-1].append(attention_mask)
    if other := [name for name in _NOT_COMPUTED if kwargs.get(name) is not None]:
        raise ValueError(f"its attention has {', '.join(other)}")
    return shared.attend(module.layer_idx, query, key, value, scaling), None


# Attention sinks, capped scores, added biases and chosen positions would otherwise be ignored.
_NOT_COMPUTED = (
    "s_aux",
    "sinks",
    "softcap",
    "position_bias",
    "attn_bias",
    "alibi",
    "indices",
    "block_indices",
)

MaskFunction = Callable[[int, int, Tensor, Tensor], Tensor]
_recorded: list[list[MaskFunction]] = []


def _mask(
    *args: Any, mask_function: MaskFunction | None = None, **kwargs: Any
) -> MaskFunction | None:
    """transformers' mask function, which builds no mask: the classes above apply their own.

    While masks are recorded, each layer receives its mask function in place of a tensor.
    """
    return mask_function if _recorded else None


@contextmanager
def recorded_masks() -> Iterator[list[MaskFunction]]:
    """Collects the mask functions of all layers in a forward pass with this attention."""
    masks: list[MaskFunction] = []
    _recorded.append(masks)
    try:
        yield masks
    finally:
        _recorded.pop()


def causal_reach(masks: Sequence[MaskFunction], longest: int) -> int:
    """Returns the greatest length, at most `longest`, at which every mask is plainly causal.

    With a sliding window or chunks, it is the first position that cannot attend to position 0.
    """
    positions_L, zero, one = torch.arange(longest), torch.tensor(0), torch.tensor(1)
    for mask in masks:
        if bool(mask(0, 0, zero, one)):
            return 0  # position 0 attends to a later one
        hidden_L = ~mask(0, 0, positions_L, zero).expand(longest)
        longest = min([longest, *hidden_L.nonzero()[:1, 0].tolist()])
        positions_L = positions_L[:longest]
    return longest


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
