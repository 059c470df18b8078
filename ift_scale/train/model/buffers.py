"""Keeps tensors that a model computes from its config, such as rotary frequencies, exact.

Under ZeRO-3, a model is built inside `deepspeed.zero.Init`, which rounds every floating-point
tensor created by a constructor to the training dtype. With frequencies in bfloat16, the angle of
position 2,000 is off by up to 3.6 rad. So these tensors are computed a second time outside of it
and put into the model after DeepSpeed has wrapped it, at every ZeRO stage.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled


def computed(kind: Any, settings: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns the tensors that depend only on the config of a `kind` model, by name, on the CPU.

    Allocates no parameters. Must be called while no HfDeepSpeedConfig of ZeRO-3 is alive.
    """
    assert not is_deepspeed_zero3_enabled()
    with init_empty_weights(include_buffers=False):
        model = kind._from_config(copy.deepcopy(settings), dtype=dtype)
    return dict(_computed_of(model))


def restore(model: nn.Module, exact: dict[str, Tensor], device: torch.device) -> None:
    """Put the tensors from `computed` into a model of the same config, on `device`, unrounded."""
    for path, tensor in exact.items():
        module, _, name = path.rpartition(".")
        setattr(model.get_submodule(module), name, tensor.to(device))


def _computed_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of non-persistent buffers and of tensors that are plain attributes."""
    for prefix, module in model.named_modules():
        buffers = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        for name, tensor in (buffers | plain).items():
            if tensor is not None:
                yield f"{prefix}.{name}", tensor
