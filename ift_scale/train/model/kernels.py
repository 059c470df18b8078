"""Chooses the implementations of norms, gated MLPs, rotary embedding and loss, and applies them.

`auto` takes the fastest implementation on the device according to `kernels/figures.json`. Without
a figure it takes Liger-Kernel on a GPU if it is installed, because its ops are published to be
faster than plain PyTorch, and the PyTorch reference otherwise. `apply` changes the modules of the
given model but no class, so other models in the process are unaffected. Only the rotary embedding
is a function shared by all models of a family.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from transformers.activations import ACT2FN

from ift_scale.errors import ConfigError
from ift_scale.estimate.layers import ACTIVATIONS

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
    """The implementation of an op, and the reason for the log."""

    implementation: Implementation
    reason: str


@dataclass(frozen=True)
class _KernelFamily:
    """A model type's class prefix, and its norms' offset of the weight and name of epsilon."""

    prefix: str
    offset: float = 0.0
    eps: str = "variance_epsilon"


_FAMILIES = {
    "llama": _KernelFamily("Llama"),
    "mistral": _KernelFamily("Mistral"),
    "qwen2": _KernelFamily("Qwen2"),
    "qwen3": _KernelFamily("Qwen3"),
    "gemma": _KernelFamily("Gemma", 1.0, "eps"),
    "gemma2": _KernelFamily("Gemma2", 1.0, "eps"),
    "gemma3_text": _KernelFamily("Gemma3", 1.0, "eps"),
}
# The activations that the gated products support, by transformers' classes.
_ACTIVATIONS = {
    type(ACT2FN[name]): "silu" if name in ("silu", "swish") else "gelu_tanh" for name in ACTIVATIONS
}


def stored_figures() -> list[dict[str, Any]]:
    """Returns the rows written by `benchmarks/bench_kernels.py`.

    A row has op, device, shape, and milliseconds (p20, p50, p80) by implementation.
    """
    return importlib.import_module("ift_scale_kernels.figures").read()


def available(device_type: str) -> set[Implementation]:
    """Returns the implementations that can run here: Triton and Liger need a GPU and a package."""
    names: set[Implementation] = {"pytorch"}
    if device_type == "cuda":
        names |= {name for name, package in _PACKAGES.items() if importlib.util.find_spec(package)}
    return names


def choose(
    setting: Literal["auto"] | Implementation,
    device_name: str,
    figures: Sequence[dict[str, Any]],
    available: Collection[Implementation],
) -> dict[str, Choice]:
    """Returns a choice for each of `OPS`. `device_name`: torch's name of the device.

    Raises ConfigError if the implementation set by name cannot run here.
    """
    if setting == "auto":
        return {op: _fastest(op, device_name, figures, available) for op in OPS}
    if setting not in available:
        problem = (
            f"train.kernels: {setting} needs a CUDA device and the package {_PACKAGES[setting]}"
            f" (device: {device_name}); set it to auto or pytorch"
        )
        raise ConfigError("training", [problem])
    return {op: Choice(setting, "by train.kernels") for op in OPS}


def _fastest(
    op: str, device: str, figures: Sequence[dict[str, Any]], available: Collection[Implementation]
) -> Choice:
    """Chooses the implementation with the smallest sum of medians over all measured shapes.

    Chooses PyTorch if torch.compile is fastest, because `train.compile` replaces all kernels.
    """
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
    times_ms = ", ".join(f"{name} {total:.2f}" for name, total in totals.items())
    if best == "compile":
        return Choice(
            "pytorch", f"torch.compile is fastest on {device}, see train.compile (ms: {times_ms})"
        )
    return Choice(best, f"fastest on {device} (ms: {times_ms})")


def implementation(op: str, choice: dict[str, Choice]) -> Callable[..., Any]:
    """Returns the function that computes `op`."""
    return getattr(importlib.import_module(_MODULES[choice[op].implementation].format(op=op)), op)


def loss_function(choice: dict[str, Choice]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Returns linear_cross_entropy: (hidden_RD, weight_VD, labels_R, weights_R, *, bias_V, softcap,
    logit_scale) -> loss, losses_R."""
    return implementation("linear_cross_entropy", choice)


def check(setting: Literal["auto"] | Implementation, model: nn.Module) -> None:
    """Raises ConfigError if kernels set by name do not support the model; needs no weights."""
    if setting not in _PACKAGES:
        return
    own = _supported_modules(model).own
    if own:
        problem = (
            f"train.kernels: {setting} cannot compute {', '.join(own)};"
            f" known types: {', '.join(sorted(_FAMILIES))},"
            f" known activations: {', '.join(ACTIVATIONS)};"
            " set it to auto, which leaves these to the model's own code"
        )
        raise ConfigError("settings", [problem])


def apply(model: Any, choice: dict[str, Choice]) -> list[str]:
    """Put the chosen ops into a Hugging Face decoder, before DeepSpeed wraps it.

    Results are the same up to rounding. Returns the names of what is left to the model's own
    PyTorch code: unknown model types, classes and activations.
    """
    modules = _supported_modules(model)
    norm, product, rotary = (implementation(op, choice) for op in OPS[1:])
    family = modules.family
    for module in modules.norms:
        eps = getattr(module, family.eps)
        _replace_forward(module, _norm_forward(norm, eps, family.offset))
    for module in modules.mlps:
        _replace_forward(module, _mlp_forward(product, _ACTIVATIONS[type(module.act_fn)]))

    def apply_rotary_pos_emb(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        assert unsqueeze_dim == 1
        return rotary(q, k, cos, sin)

    modeling = _modeling(model)
    if modeling is not None:
        modeling.apply_rotary_pos_emb = apply_rotary_pos_emb
    return modules.own


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Gives the model's family its own rotary embedding again at the end."""
    modeling = _modeling(model)
    own = getattr(modeling, "apply_rotary_pos_emb", None)
    try:
        yield
    finally:
        if modeling is not None:
            modeling.apply_rotary_pos_emb = own


def _modeling(model: Any) -> Any:
    """Returns the module with the functions of the model's family; None for an unknown one."""
    family = _FAMILIES.get(model.config.model_type)
    folder = family.prefix.lower() if family else ""
    return sys.modules.get(f"transformers.models.{folder}.modeling_{folder}")


class _SupportedModules(NamedTuple):
    """The norms and gated MLPs that the ops support; `own`: names of similar, unsupported ones."""

    family: _KernelFamily
    norms: list[Any]
    mlps: list[Any]
    own: list[str]


def _supported_modules(model: Any) -> _SupportedModules:
    name = model.config.model_type
    family = _FAMILIES.get(name)
    if family is None:
        return _SupportedModules(_KernelFamily(""), [], [], [f"models of the type {name}"])
    norms: list[Any] = []
    mlps: list[Any] = []
    own: dict[str, None] = {}
    folder = family.prefix.lower()
    for module in model.modules():
        kind = type(module).__name__
        if type(module).__module__ != f"transformers.models.{folder}.modeling_{folder}":
            # A folder's own code may give another class the same name.
            if kind.endswith("RMSNorm") or hasattr(module, "gate_proj"):
                own[kind] = None
        elif kind == f"{family.prefix}RMSNorm":
            norms.append(module)
        elif kind == f"{family.prefix}MLP" and type(module.act_fn) in _ACTIVATIONS:
            mlps.append(module)
        elif kind == f"{family.prefix}MLP":
            own[f"{kind} with the activation {type(module.act_fn).__name__}"] = None
        elif kind.endswith("RMSNorm") or hasattr(module, "gate_proj"):
            own[kind] = None
    return _SupportedModules(family, norms, mlps, list(own))


def _replace_forward(module: Any, forward: Callable[..., Tensor]) -> None:
    # A bound method rather than a closure, so that a deep copy of the model uses its own weights.
    module.forward = MethodType(forward, module)


def _norm_forward(norm: Callable[..., Tensor], eps: float, offset: float) -> Callable[..., Tensor]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return norm(hidden_states, self.weight, eps, offset=offset)

    return forward


def _mlp_forward(product: Callable[..., Tensor], activation: str) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(product(self.gate_proj(x), self.up_proj(x), activation))

    return forward
