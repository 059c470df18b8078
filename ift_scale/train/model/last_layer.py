"""Prunes the last decoder layer to the supervised rows.

Queries, output projection and MLP are computed for the supervised rows, keys and values for all.
This is exact: the head and the loss use only the supervised rows, and no layer follows. It applies
to layers whose attention is query, key and value projections (optionally with a norm per head),
rotary embedding, attention and output projection. Others raise an error here or, where only the
result differs, are found by `train.proof`.

Shapes: T tokens of the packed row, R supervised rows, Q queries of the last layer.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AttentionInterface

from ift_scale.train.data.micro_batch import PackedRows
from ift_scale.train.model.attention import PathNotSupported, attend
from ift_scale.train.model.rows import select_rows

Forward = Callable[..., Any]
Rotary = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""transformers' apply_rotary_pos_emb: (q, k, cos, sin) -> rotated q and k."""


def _heads(attention: Any, x_1ND: Tensor, name: str) -> Tensor:
    """Returns the projection as (1, heads, N, head size), with the norm of models that have one."""
    projected = getattr(attention, f"{name}_proj")(x_1ND)
    heads = projected.view(*projected.shape[:-1], -1, attention.head_dim)
    norm = getattr(attention, f"{name}_norm", None)
    return (heads if norm is None else norm(heads)).transpose(1, 2)


class _PrunedInputs:
    """Input of the pruned layer's attention in place of PackedRows: keys and values of all rows."""

    def __init__(self, packed: PackedRows, k_1KTD: Tensor, v_1KTD: Tensor):
        self.packed, self.k_1KTD, self.v_1KTD = packed, k_1KTD, v_1KTD


_RECORDER = "ift_scale_recorder"


def _record(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    recorded: dict[str, Any],
    **how: Any,
) -> Any:
    recorded.update(how)
    return query.transpose(1, 2), None


AttentionInterface.register(_RECORDER, _record)


def attention_arguments(attention: Any) -> dict[str, Any]:
    """Returns the arguments (such as scaling, sliding_window) that a layer passes to attention.

    Calls a copy of the layer without weights and records them. So a config field counts only if
    the architecture uses it: Llama, for example, ignores a sliding window. Raises PathNotSupported
    if one of them is a tensor, such as attention sinks.
    """
    config = copy.deepcopy(attention.config)
    config._attn_implementation = _RECORDER
    recorded: dict[str, Any] = {}
    modeling = sys.modules[type(attention).__module__]
    with (
        torch.device("meta"),
        patch.object(modeling, "apply_rotary_pos_emb", lambda q, k, *_: (q, k)),
    ):
        twin = type(attention)(config, attention.layer_idx).train()
        hidden_11D = torch.empty(1, 1, twin.q_proj.in_features, dtype=twin.q_proj.weight.dtype)
        twin(
            hidden_states=hidden_11D,
            position_embeddings=(None, None),
            attention_mask=None,
            recorded=recorded,
        )
    if tensors := [name for name, value in recorded.items() if isinstance(value, Tensor)]:
        raise PathNotSupported(f"its last layer's attention has {', '.join(tensors)}")
    return {name: recorded.get(name) for name in _ARGUMENTS}


_ARGUMENTS = ("scaling", "sliding_window", "softcap", "dropout")


def prune(layer: Any) -> None:
    """Make `layer` compute only the supervised rows.

    Replaces the forwards of the instances, so that parameters and hooks keep their names.
    """
    attention = layer.self_attn
    if getattr(attention.config, "clip_qkv", None) is not None:
        raise PathNotSupported("its attention clips queries, keys and values")
    rotary = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    how = attention_arguments(attention)
    layer.forward = _layer_forward(layer, layer.forward, rotary)
    attention.forward = _attention_forward(attention, attention.forward, rotary, how)


def _layer_forward(layer: Any, plain: Forward, rotary: Rotary) -> Forward:
    attention = layer.self_attn

    def forward(
        hidden_states: Tensor, *, packed: PackedRows, position_embeddings: Any, **kwargs: Any
    ) -> Tensor:
        # Keys and values of all rows, because the supervised rows attend to all rows before them.
        normed_1TD = layer.input_layernorm(hidden_states)
        cos, sin = position_embeddings
        k_1KTD = _heads(attention, normed_1TD, "k")
        _, k_1KTD = rotary(k_1KTD[:, :0], k_1KTD, cos, sin)
        v_1KTD = (
            attention.v_proj(normed_1TD)
            .view(*normed_1TD.shape[:-1], -1, attention.head_dim)
            .transpose(1, 2)
        )
        # Everything else, including the residual stream, on the supervised rows.
        rows_R = packed.rows_R
        inputs: Any = _PrunedInputs(packed, k_1KTD, v_1KTD)
        return plain(
            select_rows(hidden_states, rows_R, 1),
            packed=inputs,
            position_embeddings=(cos[:, rows_R], sin[:, rows_R]),
            **kwargs,
        )

    return forward


def _attention_forward(
    attention: Any, plain: Forward, rotary: Rotary, how: dict[str, Any]
) -> Forward:
    def forward(
        hidden_states: Tensor, *, packed: Any, position_embeddings: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if not isinstance(packed, _PrunedInputs):
            return plain(
                hidden_states, packed=packed, position_embeddings=position_embeddings, **kwargs
            )
        q_1HRD = _heads(attention, hidden_states, "q")
        q_1HRD, _ = rotary(q_1HRD, q_1HRD[:, :0], *position_embeddings)
        positions_R = packed.packed.row_positions_R
        if positions_R is not None:
            # Kernels take contiguous queries, so rows between supervised ones (other turns) get
            # zeros, and their outputs are dropped below.
            shape = (*q_1HRD.shape[:2], sum(packed.packed.last.seqlens_q), q_1HRD.shape[3])
            zeros_1HQD = torch.zeros(shape, dtype=q_1HRD.dtype, device=q_1HRD.device)
            q_1HRD = zeros_1HQD.index_copy(2, positions_R, q_1HRD)
        out_1QHD, _ = attend(
            attention,
            q_1HRD,
            packed.k_1KTD,
            packed.v_1KTD,
            None,
            packed=packed.packed,
            last=True,
            **(how | ({} if attention.training else {"dropout": 0.0})),
        )
        if positions_R is not None:
            out_1QHD = select_rows(out_1QHD, positions_R, 1)
        return attention.o_proj(out_1QHD.reshape(*hidden_states.shape[:-1], -1)), None

    return forward
