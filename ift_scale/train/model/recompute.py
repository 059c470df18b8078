"""Activation checkpointing: what the backward pass recomputes."""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from ift_scale.config.train import TrainConfig

# Outputs kept by selective checkpointing: expensive to recompute. All others are cheap and large.
_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
# flash-attn's and torch's variable-length attention, whose operations exist only on a GPU.
_KEPT_NAMES = ("flash_attn", "varlen_attn")


def checkpoint_activations(model: Any, config: TrainConfig) -> None:
    if config.activation_checkpointing == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if config.activation_checkpointing == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op in _KEPT or any(name in str(op) for name in _KEPT_NAMES)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
