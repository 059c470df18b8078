"""Attention within packed examples, for any model that uses transformers' attention interface.

Each example attends to itself only, causally: by flash-attn's or torch's variable-length kernels on
a GPU, and by SDPA, one example at a time, elsewhere. The model's forward passes `packed` on to
`attend`; a layer that computes only the supervised rows passes `last=True`, and its queries are
then each example's last rows (keys and values are still all of them).

Shapes: T keys, Q queries (T except in the last layer), H heads, K key-value heads, D head size,
L keys of one example.
"""

import importlib.util
import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from ift_scale.config.train import TrainConfig
from ift_scale.errors import ConfigError
from ift_scale.train.data.micro_batch import PackedRows, VarlenMetadata
from ift_scale.train.model.rows import select_rows


class PathNotSupported(TypeError):
    """A model that a path cannot compute. The text is the reason in words."""


# transformers takes a name that contains "flash" or "sdpa" for its own implementation, and refuses
# it for classes without that.
NAMES = {
    "flash_attn": "ift_scale_packed_fa",
    "varlen": "ift_scale_packed_varlen",
    "sdpa": "ift_scale_packed_each",
}
_KEYS = {registered: name for name, registered in NAMES.items()}
VALUE_WIDTH = "values of another width than queries"
# The terms (`TrainingPath.terms`) that a kernel does not compute. "sdpa" computes all of them.
_LACKS = {
    "flash_attn": {"sinks", VALUE_WIDTH},
    "varlen": {"softcap", "sinks", "dropout", VALUE_WIDTH},
    "sdpa": set[str](),
}
# flash-attn's and torch's kernels have heads of up to this width. torch's, unlike flash-attn's, do
# not pad a width to a multiple of 8.
_WIDEST, _MULTIPLE = 256, {"flash_attn": 1, "varlen": 8}
# Arguments of a layer's attention that change its result and that `attend` does not compute.
_NOT_COMPUTED = (
    "position_bias",
    "attn_bias",
    "alibi",
    "head_mask",
    "indices",
    "block_indices",
    "block_mask",
)


def implementation(
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    terms: Collection[str] = (),
    widths: Collection[int] = (),
) -> str:
    """Returns the key of NAMES to use. `terms`: as in `TrainingPath`; `widths`: `head_widths`.

    Raises ConfigError if the implementation set by name is not available.
    """
    reasons = {name: _refusal(name, device, dtype, terms, widths) for name in NAMES}
    if config.attention == "auto":
        return next(name for name, reason in reasons.items() if reason is None)
    reason = reasons[config.attention]
    if reason is not None:
        raise ConfigError(
            "settings", [f"train.attention: {config.attention} {reason}; set it to auto"]
        )
    return config.attention


def head_widths(model: nn.Module) -> set[int]:
    """Returns the widths of the heads' queries and values, by the names that transformers uses."""
    names = ("head_dim", "qk_head_dim", "v_head_dim", "head_size", "attention_head_size")
    found = {getattr(module, name, None) for module in model.modules() for name in names}
    return {width for width in found if type(width) is int}


def _refusal(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    terms: Collection[str],
    widths: Collection[int],
) -> str | None:
    if name == "sdpa":
        return None
    if device.type != "cuda":
        return "needs a CUDA device"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"computes in bfloat16, and train.precision makes it {dtype}"
    if name == "flash_attn" and not importlib.util.find_spec("flash_attn"):
        return "is not installed"
    lacking = sorted(_LACKS[name] & set(terms))
    wrong = [width for width in sorted(widths) if width > _WIDEST or width % _MULTIPLE[name]]
    lacking += [f"heads of width {width}" for width in wrong]
    return f"does not compute this model's {', '.join(lacking)}" if lacking else None


def _flash_attn(
    q_QHD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    varlen: VarlenMetadata,
    scale: float,
    window: int | None,
    softcap: float,
    dropout: float,
    sinks_H: Tensor | None,
) -> Any:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        q_QHD,
        k_TKD,
        v_TKD,
        varlen.cu_seqlens_q,
        varlen.cu_seqlens_k,
        max(varlen.seqlens_q),
        max(varlen.seqlens_k),
        dropout_p=dropout,
        softmax_scale=scale,
        causal=True,  # aligned at the end if there are fewer queries than keys
        window_size=(-1, -1) if window is None else (window - 1, 0),
        softcap=softcap,
    )


def _varlen(
    q_QHD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    varlen: VarlenMetadata,
    scale: float,
    window: int | None,
    softcap: float,
    dropout: float,
    sinks_H: Tensor | None,
) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    groups = q_QHD.shape[1] // k_TKD.shape[1]
    options: dict[str, Any] = {}
    if groups > 1 and "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    elif groups > 1:
        k_TKD, v_TKD = (x.repeat_interleave(groups, 1) for x in (k_TKD, v_TKD))
    return varlen_attn(
        q_QHD,
        k_TKD,
        v_TKD,
        varlen.cu_seqlens_q,
        varlen.cu_seqlens_k,
        max(varlen.seqlens_q),
        max(varlen.seqlens_k),
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **options,
    )


def _prepend_prefix(x_1KTD: Tensor, varlen: VarlenMetadata) -> Tensor:
    """Returns the keys or values of all sequences, each with the shared prefix before its own.

    The prefix is repeated by `expand`, whose gradient is one sum over the examples. The reordering
    uses every element once, so its gradient is a copy.
    """
    assert varlen.key_order is not None
    num_own = x_1KTD.shape[2] - varlen.num_shared
    prefix_1KPD, own_1KND = x_1KTD.split([varlen.num_shared, num_own], 2)
    copies_1KMD = prefix_1KPD[:, :, None].expand(-1, -1, varlen.num_copies, -1, -1).flatten(2, 3)
    return select_rows(torch.cat([copies_1KMD, own_1KND], 2), varlen.key_order, 2)


def _attend_flat(
    kernel: Any, q_1HQD: Tensor, k_1KTD: Tensor, v_1KTD: Tensor, varlen: VarlenMetadata, **how: Any
) -> Tensor:
    """Attends with a variable-length kernel, which takes (tokens, heads, size)."""
    q, k, v = (x[0].transpose(0, 1) for x in (q_1HQD, k_1KTD, v_1KTD))
    return kernel(q, k, v, varlen, **how)[None]


def _attend_each(
    q_1HQD: Tensor, k_1KTD: Tensor, v_1KTD: Tensor, varlen: VarlenMetadata, **how: Any
) -> Tensor:
    """Attends sequence by sequence.

    One `split`, whose gradient is one concatenation, instead of a slice per sequence.
    """
    groups = q_1HQD.shape[1] // k_1KTD.shape[1]
    if groups > 1:
        k_1KTD, v_1KTD = (x.repeat_interleave(groups, 1) for x in (k_1KTD, v_1KTD))
    sequences = zip(
        q_1HQD.split(varlen.seqlens_q, 2),
        k_1KTD.split(varlen.seqlens_k, 2),
        v_1KTD.split(varlen.seqlens_k, 2),
        strict=True,
    )
    attended_1HQD = torch.cat([_attend_one(q, k, v, **how) for q, k, v in sequences], 2)
    return attended_1HQD.transpose(1, 2).contiguous()  # as layers may expect that take a view


def _attend_one(
    q_1HQD: Tensor,
    k_1HLD: Tensor,
    v_1HLD: Tensor,
    scale: float,
    window: int | None,
    softcap: float,
    dropout: float,
    sinks_H: Tensor | None,
) -> Tensor:
    num_q, num_k = q_1HQD.shape[2], k_1HLD.shape[2]
    limited = window is not None and num_k > window
    is_plain = not softcap and sinks_H is None
    if 2 * num_q > num_k and not limited and is_plain:
        # Causal SDPA aligns queries and keys at the beginning. Padding the queries in front aligns
        # them at the end, and is faster than a mask unless most queries are padding.
        padded_1HLD = F.pad(q_1HQD, (0, 0, num_k - num_q, 0)) if num_q < num_k else q_1HQD
        return F.scaled_dot_product_attention(
            padded_1HLD, k_1HLD, v_1HLD, dropout_p=dropout, is_causal=True, scale=scale
        )[:, :, num_k - num_q :]
    mask_QL = torch.ones(num_q, num_k, dtype=torch.bool, device=q_1HQD.device).tril(num_k - num_q)
    if limited:
        assert window is not None
        mask_QL = mask_QL.triu(num_k - num_q - window + 1)
    if is_plain:
        return F.scaled_dot_product_attention(
            q_1HQD, k_1HLD, v_1HLD, attn_mask=mask_QL, dropout_p=dropout, scale=scale
        )
    # SDPA has neither a cap on the scores (Gemma 2) nor sinks (gpt-oss), so this is written out.
    scores = q_1HQD @ k_1HLD.transpose(2, 3) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask_QL, -torch.inf)
    if sinks_H is not None:
        # A sink is a score of each head that takes part in the softmax and has no value.
        sinks = sinks_H.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, sinks], -1).float().softmax(-1)[..., :-1].to(q_1HQD.dtype)
    else:
        weights = scores.float().softmax(-1).to(q_1HQD.dtype)
    return F.dropout(weights, dropout) @ v_1HLD


def _terms(
    query: Tensor,
    value: Tensor,
    *,
    softcap: float,
    dropout: float,
    sinks_H: Tensor | None,
    **_: Any,
) -> set[str]:
    """Returns the terms (`TrainingPath.terms`) of one call."""
    computed = {
        "softcap": softcap,
        "dropout": dropout,
        "sinks": sinks_H is not None,
        VALUE_WIDTH: query.shape[-1] != value.shape[-1],
    }
    return {name for name, present in computed.items() if present}


_recorded: list[set[str]] = []


@contextmanager
def recorded_terms() -> Iterator[set[str]]:
    """Collects the terms (`TrainingPath.terms`) that the model's layers pass to `attend`."""
    terms: set[str] = set()
    _recorded.append(terms)
    try:
        yield terms
    finally:
        _recorded.pop()


_packed: list[PackedRows] = []


def set_packed(packed: PackedRows) -> None:
    """Set the boundaries for layers that do not pass the model's arguments on (StableLM, Nemotron).

    Valid until the next call, and so for recomputation in the backward pass.
    """
    _packed[:] = [packed]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    packed: PackedRows | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    s_aux: Tensor | None = None,
    last: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function.

    Takes query (1, H, Q, D), key and value (1, K, T, D); returns (1, Q, H, D). `packed`: by default
    the micro-batch that was set last (`set_packed`). `s_aux`: sinks (H,).
    Raises PathNotSupported for a layer whose attention has a term that is not computed here.
    """
    others = [name for name in _NOT_COMPUTED if kwargs.get(name) is not None]
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        others.append("non-causal attention")
    if attention_mask is not None:
        others.append("a mask of its own")
    if others:
        raise PathNotSupported(f"its attention has {', '.join(others)}")
    how: dict[str, Any] = {
        "scale": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "window": sliding_window,
        "softcap": softcap or 0.0,
        "dropout": dropout,
        "sinks_H": s_aux,
    }
    present = _terms(query, value, **how)
    if _recorded:
        _recorded[-1].update(present)
    packed = packed or _packed[0]
    varlen = packed.last if last else packed.whole
    if varlen.key_order is not None:
        key, value = _prepend_prefix(key, varlen), _prepend_prefix(value, varlen)
    name = _KEYS[module.config._attn_implementation]  # type: ignore[union-attr,index]
    if lacking := sorted(_LACKS[name] & present):
        raise PathNotSupported(f"{name} does not compute this layer's {', '.join(lacking)}")
    if name == "sdpa":
        return _attend_each(query, key, value, varlen, **how), None
    kernel = _flash_attn if name == "flash_attn" else _varlen
    return _attend_flat(kernel, query, key, value, varlen, **how), None


# Registered without a mask function: transformers then builds no mask, and does not read positions
# back from the device to build one.
for _name in NAMES.values():
    AttentionInterface.register(_name, attend)
