"""Attention among packed examples without cross-talk, for any model that takes transformers' attention interface.

Each example attends to itself only, causally: flash-attn's or torch's variable-length kernels on a GPU, elsewhere SDPA example by
example. The model's call carries `packed`; a layer that computes the wanted rows only carries `last=True`, and its queries are
each example's last ones (keys and values are all of them).

Shapes: T keys, Q queries (T but in the last layer), H heads, K key-value heads, D head size.
"""

import importlib.util
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from ift_scale.config import TrainConfig
from ift_scale.errors import ConfigError
from ift_scale.train.data.collate import Packed, Places
from ift_scale.train.model.rows import select_rows

NAMES = {
    "flash_attn": "ift_scale_flash_attn",
    "varlen": "ift_scale_varlen",
    "sdpa": "ift_scale_sdpa",
}


def implementation(
    config: TrainConfig, device: torch.device, dtype: torch.dtype, softcap: bool
) -> str:
    """Which of NAMES' keys serves; `softcap`: the model caps its attention scores. ConfigError where the set one cannot."""
    reasons = {name: _refusal(name, device, dtype, softcap) for name in NAMES}
    if config.attention == "auto":
        return next(name for name, reason in reasons.items() if reason is None)
    reason = reasons[config.attention]
    if reason is not None:
        raise ConfigError(
            "settings", [f"train.attention: {config.attention} {reason}; set it to auto"]
        )
    return config.attention


def _refusal(name: str, device: torch.device, dtype: torch.dtype, softcap: bool) -> str | None:
    if name == "sdpa":
        return None
    if device.type != "cuda":
        return "needs a CUDA device"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"computes in bfloat16, and train.precision makes it {dtype}"
    if name == "flash_attn":
        return None if importlib.util.find_spec("flash_attn") else "is not installed"
    return "does not cap attention scores, which this model does" if softcap else None


def _flash_attn(
    q_QHD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    places: Any,
    scale: float,
    window: int | None,
    softcap: float,
) -> Any:
    from flash_attn import flash_attn_varlen_func

    q_starts, k_starts, most_q, most_k = places
    reach = (-1, -1) if window is None else (window - 1, 0)
    return flash_attn_varlen_func(
        q_QHD,
        k_TKD,
        v_TKD,
        q_starts,
        k_starts,
        most_q,
        most_k,
        softmax_scale=scale,
        causal=True,  # aligned at the end, where there are fewer queries than keys
        window_size=reach,
        softcap=softcap,
    )


def _varlen(
    q_QHD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    places: Any,
    scale: float,
    window: int | None,
    softcap: float,
) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    q_starts, k_starts, most_q, most_k = places
    groups = q_QHD.shape[1] // k_TKD.shape[1]
    more: dict[str, Any] = {}
    if groups > 1 and "enable_gqa" in inspect.signature(varlen_attn).parameters:
        more["enable_gqa"] = True
    elif groups > 1:
        k_TKD, v_TKD = (x.repeat_interleave(groups, 1) for x in (k_TKD, v_TKD))
    reach = (-1 if window is None else window - 1, 0)
    return varlen_attn(
        q_QHD,
        k_TKD,
        v_TKD,
        q_starts,
        k_starts,
        most_q,
        most_k,
        scale=scale,
        window_size=reach,
        **more,
    )


def _behind_prefix(x_1KTD: Tensor, at: Places) -> Tensor:
    """Keys or values of all runs one after another, the shared prefix' before each example's own.

    Repeated by `expand`, whose gradient is one sum, and put in order by a permutation, whose gradient is one.
    """
    assert at.keys is not None
    prefix_1KPD, own_1KND = x_1KTD.split([at.num_shared, x_1KTD.shape[2] - at.num_shared], 2)
    copies_1KMD = prefix_1KPD[:, :, None].expand(-1, -1, at.times, -1, -1).flatten(2, 3)
    return select_rows(torch.cat([copies_1KMD, own_1KND], 2), at.keys, 2)


def _attend_flat(
    kernel: Any, q_1HQD: Tensor, k_1KTD: Tensor, v_1KTD: Tensor, at: Places, **how: Any
) -> Tensor:
    """Variable-length kernels take (tokens, heads, size) and the starts of the runs."""
    places = at.query_starts, at.key_starts, max(at.query_lengths), max(at.key_lengths)
    q, k, v = (x[0].transpose(0, 1) for x in (q_1HQD, k_1KTD, v_1KTD))
    return kernel(q, k, v, places, **how)[None]


def _attend_each(q_1HQD: Tensor, k_1KTD: Tensor, v_1KTD: Tensor, at: Places, **how: Any) -> Tensor:
    """Run by run. One split, whose gradient is one concatenation, rather than a slice for each."""
    groups = q_1HQD.shape[1] // k_1KTD.shape[1]
    if groups > 1:
        k_1KTD, v_1KTD = (x.repeat_interleave(groups, 1) for x in (k_1KTD, v_1KTD))
    parts = zip(
        q_1HQD.split(at.query_lengths, 2),
        k_1KTD.split(at.key_lengths, 2),
        v_1KTD.split(at.key_lengths, 2),
        strict=True,
    )
    return torch.cat([_attend_one(q, k, v, **how) for q, k, v in parts], 2).transpose(1, 2)


def _attend_one(
    q_1HQD: Tensor, k_1HLD: Tensor, v_1HLD: Tensor, scale: float, window: int | None, softcap: float
) -> Tensor:
    num_q, num_k = q_1HQD.shape[2], k_1HLD.shape[2]
    limited = window is not None and num_k > window
    if 2 * num_q > num_k and not limited and not softcap:
        # Causal SDPA aligns queries and keys at the beginning, so missing queries are put there: quicker than a mask.
        whole_1HLD = F.pad(q_1HQD, (0, 0, num_k - num_q, 0)) if num_q < num_k else q_1HQD
        return F.scaled_dot_product_attention(
            whole_1HLD, k_1HLD, v_1HLD, is_causal=True, scale=scale
        )[:, :, num_k - num_q :]
    seen_QL = torch.ones(num_q, num_k, dtype=torch.bool, device=q_1HQD.device).tril(num_k - num_q)
    if limited:
        assert window is not None
        seen_QL = seen_QL.triu(num_k - num_q - window + 1)
    if not softcap:
        return F.scaled_dot_product_attention(
            q_1HQD, k_1HLD, v_1HLD, attn_mask=seen_QL, scale=scale
        )
    scores = torch.tanh(q_1HQD @ k_1HLD.transpose(2, 3) * (scale / softcap)) * softcap
    weights = scores.masked_fill(~seen_QL, -torch.inf).float().softmax(-1).to(q_1HQD.dtype)
    return weights @ v_1HLD


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    packed: Packed,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    last: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (1, H, Q, D), key and value (1, K, T, D) to (1, Q, H, D)."""
    how: dict[str, Any] = {"scale": scaling, "window": sliding_window, "softcap": softcap or 0.0}
    at = packed.last if last else packed.whole
    if at.keys is not None:
        key, value = _behind_prefix(key, at), _behind_prefix(value, at)
    name = module.config._attn_implementation  # type: ignore[union-attr]
    if name == NAMES["sdpa"]:
        return _attend_each(query, key, value, at, **how), None
    kernel = _flash_attn if name == NAMES["flash_attn"] else _varlen
    return _attend_flat(kernel, query, key, value, at, **how), None


# No mask function goes with them: transformers then makes no mask, and does not read positions back from the device to make one.
for _name in NAMES.values():
    AttentionInterface.register(_name, attend)
