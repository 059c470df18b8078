"""A small random model whose weights are far from flat, for comparing two ways of computing it.

A model as its class initialises it hides errors: attention weights are almost uniform, norms are
ones, biases and sinks zeros. Here attention scores differ by several units, biases and sinks are
not zero, norms' weights are spread, and logits have a standard deviation of about 2.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from ift_scale.train.proof.small_fields import SPECIAL_TOKENS, CannotShrink

MOST_PARAMETERS = 10_000_000
_LOGITS_STD, _SCORES_STD = 2.0, 2.5
_NOISE = 0.2
_PROBE = 40
_SLOWER = 2.0
"""Added to the logarithm of a state's decay time, so that states remember whole rows."""
_QUERIES_AND_KEYS = ("q_", "k_", "query", "key", "qkv", "wq", "wk", "c_attn", "q_proj", "in_proj")


def tiny_model(
    kind: Any,
    settings: PretrainedConfig,
    seed: int,
    most_parameters: int | None = MOST_PARAMETERS,
) -> Any:
    """Returns `kind(settings)` in float32, in evaluation mode, with weights drawn by the seed.

    Raises CannotShrink if it has more parameters than allowed, or if its logits are not finite.
    """
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(settings).parameters())
    if most_parameters is not None and size > most_parameters:
        raise CannotShrink(
            f"{kind.__name__} has {size:,} parameters at its small size, more than the"
            f" {most_parameters:,} allowed"
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = kind(settings).float().eval()
        _draw(model)
        _scale_logits(model)
        # Those passes leave traces: dynamic rotary frequencies, the attention of BigBird.
        unused = kind(settings).float().eval()
        unused.load_state_dict(model.state_dict())
    return unused


def _draw(model: nn.Module) -> None:
    for path, module in model.named_modules():
        gain = _score_gain(module, model, path)
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(_drawn(module, f"{path}.{name}", parameter, gain))
        for name, buffer in module.named_buffers(recurse=False):
            stored = name not in module._non_persistent_buffers_set
            if stored and buffer.is_floating_point() and not buffer.any():
                buffer.add_(_NOISE * torch.randn_like(buffer))


def _drawn(module: nn.Module, path: str, initial: Tensor, gain: float) -> Tensor:
    noise = torch.randn_like(initial)
    if isinstance(module, nn.Embedding):
        return noise
    if isinstance(module, (nn.Linear, Conv1D)) and initial.dim() == 2:
        inputs = initial.shape[0 if isinstance(module, Conv1D) else 1]
        return gain * noise / inputs**0.5
    if not _is_matrix(path, initial):
        start = torch.where(initial.isfinite(), initial, torch.zeros_like(initial))
        if path.endswith("A_log"):
            start = start - _SLOWER
        return start * (1 + _NOISE / 2 * noise) + _NOISE * torch.randn_like(initial) * (
            (start == 0) | (start == 1)
        )
    fan = initial.shape[-1] if initial.dim() == 3 and "conv" in path else _inputs(initial)
    return noise / fan**0.5


def _is_matrix(path: str, initial: Tensor) -> bool:
    """True for a tensor that its class leaves empty or fills with small random numbers."""
    if initial.dim() < 2 or path.endswith("bias") or initial.numel() <= max(initial.shape):
        return False
    spread = initial.std()
    return bool(~initial.isfinite().all() or (spread > 0 and initial.mean().abs() < spread))


def _inputs(initial: Tensor) -> float:
    """The number of inputs of stacked matrices, whichever way around they are stored."""
    return float((initial.shape[-1] * initial.shape[-2]) ** 0.5)


def _score_gain(module: nn.Module, model: nn.Module, path: str) -> float:
    """The gain of queries and keys with which scores have a standard deviation of `_SCORES_STD`."""
    parent, _, name = path.rpartition(".")
    if not any(part in name for part in _QUERIES_AND_KEYS):
        return 1.0
    attention: Any = model.get_submodule(parent)
    width = next(
        (
            value
            for field in ("qk_head_dim", "head_dim", "head_size")
            if isinstance(value := getattr(attention, field, None), int)
        ),
        16,
    )
    scaling = getattr(attention, "scaling", None)
    scaling = scaling if isinstance(scaling, float) and scaling > 0 else width**-0.5
    return float((_SCORES_STD / (scaling * width**0.5)) ** 0.5)


def _scale_logits(model: Any) -> None:
    """Scales the output head until the logits' standard deviation is about `_LOGITS_STD`."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(SPECIAL_TOKENS, vocabulary, (1, _PROBE))
    head = model.get_output_embeddings()
    for _ in range(6):
        spread = float(model(input_ids=ids, use_cache=False).logits.std())
        if not spread < float("inf") or spread == 0:
            raise CannotShrink(f"the logits of {type(model).__name__} have a deviation of {spread}")
        if head is None or 0.7 < spread / _LOGITS_STD < 1.4:
            return
        for parameter in head.parameters():
            parameter.mul_(min(10.0, _LOGITS_STD / spread))
