"""The last decoder layer on the wanted rows only: its queries, projection and MLP there, its keys and values everywhere.

Exact, since nothing reads the other rows: the head and the loss take the wanted rows, and no layer follows. The attention of the
model types in shape.PROVEN is query, key and value projections (each with a norm or not), rotary embedding, attention, output
projection.
"""

import copy
import sys
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AttentionInterface

from ift_scale.train.data.collate import Packed
from ift_scale.train.model.attention import attend
from ift_scale.train.model.rows import select_rows


def _heads(attention: Any, x_1ND: Tensor, name: str) -> Tensor:
    """Projection to heads, (1, heads, N, head size), with the family's norm where it has one."""
    projected = getattr(attention, f"{name}_proj")(x_1ND)
    heads = projected.view(*projected.shape[:-1], -1, attention.head_dim)
    norm = getattr(attention, f"{name}_norm", None)
    return (heads if norm is None else norm(heads)).transpose(1, 2)


class _Rows:
    """What the pruned layer hands its attention: the keys and values of all tokens."""

    def __init__(self, packed: Packed, k_1KTD: Tensor, v_1KTD: Tensor):
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


def how_attended(attention: Any) -> dict[str, Any]:
    """What an attention layer tells transformers' attention interface beside its tensors: scaling, sliding_window, softcap.

    A twin without weights is called and listened to, so that a field of the config counts where the architecture reads it and
    nowhere else: a window that a Llama, or a full-attention layer, leaves alone.
    """
    config = copy.deepcopy(attention.config)
    config._attn_implementation = _RECORDER
    recorded: dict[str, Any] = {}
    modeling = sys.modules[type(attention).__module__]
    with (
        torch.device("meta"),
        patch.object(modeling, "apply_rotary_pos_emb", lambda q, k, *_: (q, k)),
    ):
        twin = type(attention)(config, attention.layer_idx)
        hidden_11D = torch.empty(1, 1, twin.q_proj.in_features, dtype=twin.q_proj.weight.dtype)
        twin(
            hidden_states=hidden_11D,
            position_embeddings=(None, None),
            attention_mask=None,
            recorded=recorded,
        )
    return {name: recorded.get(name) for name in ("scaling", "sliding_window", "softcap")}


def prune(layer: Any) -> None:
    """Make `layer` compute its packed rows only. Instance forwards are replaced, so that parameters and hooks keep their names."""
    attention = layer.self_attn
    whole_layer, whole_attention = layer.forward, attention.forward
    rotary = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    how = how_attended(attention)

    def layer_forward(
        hidden_states: Tensor, *, packed: Packed, position_embeddings: Any, **kwargs: Any
    ) -> Tensor:
        normed_1TD = layer.input_layernorm(hidden_states)
        cos, sin = position_embeddings
        k_1KTD = _heads(attention, normed_1TD, "k")
        _, k_1KTD = rotary(k_1KTD[:, :0], k_1KTD, cos, sin)
        v_1KTD = (
            attention.v_proj(normed_1TD)
            .view(*normed_1TD.shape[:-1], -1, attention.head_dim)
            .transpose(1, 2)
        )
        rows = packed.rows_R
        of_rows = cos[:, rows], sin[:, rows]
        handed: Any = _Rows(packed, k_1KTD, v_1KTD)
        return whole_layer(
            select_rows(hidden_states, rows, 1),
            packed=handed,
            position_embeddings=of_rows,
            **kwargs,
        )

    def attention_forward(
        hidden_states: Tensor, *, packed: Any, position_embeddings: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if not isinstance(packed, _Rows):
            return whole_attention(
                hidden_states, packed=packed, position_embeddings=position_embeddings, **kwargs
            )
        q_1HRD = _heads(attention, hidden_states, "q")
        q_1HRD, _ = rotary(q_1HRD, q_1HRD[:, :0], *position_embeddings)
        places = packed.packed.row_places_R
        if places is not None:  # rows between wanted ones: other turns
            shape = (*q_1HRD.shape[:2], sum(packed.packed.last.query_lengths), q_1HRD.shape[3])
            q_1HRD = torch.zeros(shape, dtype=q_1HRD.dtype, device=q_1HRD.device).index_copy(
                2, places, q_1HRD
            )
        out_1QHD, _ = attend(
            attention,
            q_1HRD,
            packed.k_1KTD,
            packed.v_1KTD,
            None,
            packed=packed.packed,
            last=True,
            **how,
        )
        if places is not None:
            out_1QHD = select_rows(out_1QHD, places, 1)
        return attention.o_proj(out_1QHD.reshape(*hidden_states.shape[:-1], -1)), None

    layer.forward, attention.forward = layer_forward, attention_forward
