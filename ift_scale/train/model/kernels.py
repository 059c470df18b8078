"""Who computes norms, gated products, rotary embedding and the loss: chosen by stored figures, put into a model's own modules.

`auto` takes what was measured to be fastest on the device (`kernels/figures.json`). Without a figure it is Liger-Kernel on a GPU,
if installed, whose ops are published to beat plain PyTorch, and else the PyTorch reference. `apply` changes the given model's
modules one by one and no class, so another model in the process keeps its own; only the rotary embedding is a function that all
models of a family share.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from transformers.activations import ACT2FN

from ift_scale.errors import ConfigError
from ift_scale.estimate.shape import ACTIVATIONS

OPS = ("linear_cross_entropy", "rms_norm", "swiglu", "rotary")
Implementation = Literal["pytorch", "triton", "liger"]
_MODULES = {
    "pytorch": "ift_scale_kernels.{op}.reference",
    "triton": "ift_scale_kernels.{op}.triton_kernel",
    "liger": "ift_scale_kernels.liger",
}
_PACKAGES: dict[Implementation, str] = {"triton": "triton", "liger": "liger_kernel"}


@dataclass(frozen=True)
class Choice:
    """Who computes an op, and why: the reason belongs in the log."""

    implementation: Implementation
    reason: str


@dataclass(frozen=True)
class _Family:
    """A model type's classes, and what its norm adds to the weight."""

    prefix: str
    offset: float = 0.0
    eps: str = "variance_epsilon"


_FAMILIES = {
    "llama": _Family("Llama"),
    "mistral": _Family("Mistral"),
    "qwen2": _Family("Qwen2"),
    "qwen3": _Family("Qwen3"),
    "gemma": _Family("Gemma", 1.0, "eps"),
    "gemma2": _Family("Gemma2", 1.0, "eps"),
    "gemma3_text": _Family("Gemma3", 1.0, "eps"),
}
# The functions that the gated products know, by the classes of transformers' names of them.
_ACTIVATIONS = {
    type(ACT2FN[name]): "silu" if name in ("silu", "swish") else "gelu_tanh" for name in ACTIVATIONS
}


def stored_figures() -> list[dict[str, Any]]:
    """The rows that `benchmarks/bench_kernels.py` wrote: op, device, shape, milliseconds (p20, p50, p80) by implementation."""
    return importlib.import_module("ift_scale_kernels.figures").read()


def available(device_type: str) -> set[Implementation]:
    """What can run here: Triton and Liger need a GPU and their package."""
    found: set[Implementation] = {"pytorch"}
    if device_type == "cuda":
        found |= {name for name, package in _PACKAGES.items() if importlib.util.find_spec(package)}
    return found


def choose(
    setting: Literal["auto"] | Implementation,
    device_name: str,
    figures: Sequence[dict[str, Any]],
    available: Collection[Implementation],
) -> dict[str, Choice]:
    """A choice for each of `OPS`. `device_name` is as torch names it. Raises ConfigError where the setting cannot run here."""
    if setting == "auto":
        return {op: _fastest(op, device_name, figures, available) for op in OPS}
    if setting not in available:
        problem = f"train.kernels: {setting} needs a CUDA device and the package {_PACKAGES[setting]} (device: {device_name}); "
        raise ConfigError("training", [problem + "set it to auto or pytorch"])
    return {op: Choice(setting, "by train.kernels") for op in OPS}


def _fastest(
    op: str, device: str, figures: Sequence[dict[str, Any]], available: Collection[Implementation]
) -> Choice:
    """The least sum of medians over the shapes measured; PyTorch where torch.compile wins, since no kernel is worth using then."""
    times = [row["milliseconds"] for row in figures if row["op"] == op and row["device"] == device]
    if not times:
        return Choice(
            "liger" if "liger" in available else "pytorch", f"no figure is stored for {device}"
        )
    candidates: list[Any] = [name for name in ("pytorch", "triton", "liger") if name in available]
    totals = {
        name: sum(t[name]["p50"] for t in times)
        for name in [*candidates, "compile"]
        if all(name in t for t in times)
    }
    best = min(totals, key=lambda name: totals[name])
    told = ", ".join(f"{name} {total:.2f}" for name, total in totals.items())
    if best == "compile":
        return Choice(
            "pytorch", f"torch.compile is fastest on {device}, see train.compile (ms: {told})"
        )
    return Choice(best, f"fastest on {device} (ms: {told})")


def implementation(op: str, choice: dict[str, Choice]) -> Callable[..., Any]:
    """The function that computes `op`."""
    return getattr(importlib.import_module(_MODULES[choice[op].implementation].format(op=op)), op)


def loss_function(choice: dict[str, Choice]) -> Callable[..., tuple[Tensor, Tensor]]:
    """linear_cross_entropy(hidden_RD, weight_VD, labels_R, weights_R, *, bias_V, softcap, logit_scale) -> loss, losses_R."""
    return implementation("linear_cross_entropy", choice)


def check(setting: Literal["auto"] | Implementation, model: nn.Module) -> None:
    """ConfigError where kernels that were asked for by name cannot compute this model; `model` may be without weights."""
    if setting not in _PACKAGES:
        return
    own = _found(model).own
    if own:
        problem = f"train.kernels: {setting} cannot compute {', '.join(own)}; known types: {', '.join(sorted(_FAMILIES))}, "
        problem += f"known activations: {', '.join(ACTIVATIONS)}"
        raise ConfigError(
            "settings", [f"{problem}; set it to auto, which leaves these to the model's own code"]
        )


def apply(model: Any, choice: dict[str, Choice]) -> list[str]:
    """Put the chosen ops into a Hugging Face decoder, before DeepSpeed takes it; the results stay the same up to rounding.

    Returns what is left to the model's own code, which is PyTorch: another model type, class or activation than the known ones.
    """
    found = _found(model)
    norm, product, rotary = (implementation(op, choice) for op in OPS[1:])
    for module in found.norms:
        _replace_forward(
            module, _norm_forward(norm, getattr(module, found.family.eps), found.family.offset)
        )
    for module in found.mlps:
        _replace_forward(module, _mlp_forward(product, _ACTIVATIONS[type(module.act_fn)]))

    def apply_rotary_pos_emb(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        assert unsqueeze_dim == 1
        return rotary(q, k, cos, sin)

    if model.config.model_type in _FAMILIES:
        folder = found.family.prefix.lower()
        modeling: Any = sys.modules[f"transformers.models.{folder}.modeling_{folder}"]
        modeling.apply_rotary_pos_emb = apply_rotary_pos_emb
    return found.own


class _Found(NamedTuple):
    """The norms and gated MLPs that the ops can compute, and in words what looks like one of them and is left alone."""

    family: _Family
    norms: list[Any]
    mlps: list[Any]
    own: list[str]


def _found(model: Any) -> _Found:
    name = model.config.model_type
    family = _FAMILIES.get(name)
    if family is None:
        return _Found(_Family(""), [], [], [f"models of the type {name}"])
    norms: list[Any] = []
    mlps: list[Any] = []
    own: dict[str, None] = {}
    for module in model.modules():
        kind = type(module).__name__
        if kind == f"{family.prefix}RMSNorm":
            norms.append(module)
        elif kind == f"{family.prefix}MLP" and type(module.act_fn) in _ACTIVATIONS:
            mlps.append(module)
        elif kind == f"{family.prefix}MLP":
            own[f"{kind} with the activation {type(module.act_fn).__name__}"] = None
        elif kind.endswith("RMSNorm") or hasattr(module, "gate_proj"):
            own[kind] = None
    return _Found(family, norms, mlps, list(own))


def _replace_forward(module: Any, forward: Callable[..., Tensor]) -> None:
    # A bound method, not a closure over the module: a deep copy of the model then computes with its own weights.
    module.forward = MethodType(forward, module)


def _norm_forward(norm: Callable[..., Tensor], eps: float, offset: float) -> Callable[..., Tensor]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return norm(hidden_states, self.weight, eps, offset=offset)

    return forward


def _mlp_forward(product: Callable[..., Tensor], activation: str) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(product(self.gate_proj(x), self.up_proj(x), activation))

    return forward
