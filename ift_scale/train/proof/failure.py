"""Describes why a model's pass failed, in words: which module, and what it lacks."""

import re
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ift_scale.train.model.attention import PathNotSupported

_CAUSES = (
    (
        r"(_record|attention_arguments|_layer_forward|_attention_forward)\b.*",
        r"it passes other arguments to its attention or rotary embedding",
    ),
    (r"'NoneType' object has no attribute '(\w+)'", r"the part whose \1 is used does not exist"),
    (r"'(\w+)' object has no attribute '(\w+)'", r"\1 has no \2"),
    (r"module '(?:\w+\.)*(\w+)' has no attribute '(\w+)'", r"\1 has no \2"),
    (r"'NoneType' object is not \w+", r"a part or an input that is used does not exist"),
    (r"'(\w+)' object is not subscriptable", r"\1 is used as a tuple"),
    (
        r"(?:.*>\.)?(\w+(?:\.\w+)?)\(\) missing \d+ required [\w -]*arguments?: (.*)",
        r"\1 is called without \2",
    ),
    (
        r"(?:.*>\.)?(\S+?)\(\) got an unexpected keyword argument '(\w+)'",
        r"\1 is called with an argument that it does not take, \2",
    ),
    (r"[^\d]*size of tensor a \((\d+)\)[^(]*\((\d+)\).*", r"sizes \1 and \2 do not match"),
    (r"mat1 and mat2 shapes cannot be multiplied \((.*)\)", r"shapes \1 do not match"),
    (r"a and b must have same reduction dim, but got (.*)\.", r"shapes \1 do not match"),
    (r"index out of range in self", r"it selects rows that do not exist"),
    (r"split_with_sizes expects .*", r"its row is not as long as its examples together"),
)
"""Messages of Python and torch, and the same in words."""


def in_words(error: BaseException) -> str:
    """Returns the reason for a failed pass in one line.

    For a reason of the trainer's own (`PathNotSupported`), its text. For others, the pass, the type
    of error, the innermost module of the model, and the cause.
    """
    if isinstance(error, PathNotSupported):
        inner = error.__cause__
        return str(error) + (f" ({_cause(inner, None)})" if inner is not None else "")
    frames = list(_frames(error))
    modules = [part for frame in frames if isinstance(part := _self(frame), nn.Module)]
    root = next((part for part in modules if isinstance(part, PreTrainedModel)), None)
    if root is None:
        return f"{type(error).__name__}: {_cause(error, None)}"
    names = {id(part): name for name, part in root.named_modules()}
    innermost = [part for part in modules if names.get(id(part))][-1:] or [root]
    name, kind = names[id(innermost[0])], type(innermost[0]).__name__
    where = f"{name} ({kind})" if name else kind
    step = "backward" if any(f.f_code.co_name == "backward" for f in frames) else "forward"
    cause = _cause(error, innermost[0], name)
    return f"its {step} pass raises {type(error).__name__} in {where}: {cause}"


def _cause(error: BaseException, module: nn.Module | None, name: str = "") -> str:
    if isinstance(module, nn.Embedding) and isinstance(error, IndexError):
        table = "position table" if "pos" in name else "table"
        return f"its {table} has {module.num_embeddings} rows"
    if isinstance(error, PathNotSupported):
        return in_words(error)
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    text = (str(error) or type(error).__name__).splitlines()[0]
    for pattern, words in _CAUSES:
        if found := re.fullmatch(pattern, text):
            return found.expand(words).replace("'", "")
    return text


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _self(frame: FrameType) -> Any:
    return frame.f_locals.get("self")
