"""Finds the field of a config.json that transformers cannot use, and the words for it.

transformers' classes check few fields, so a wrong value fails anywhere in them, with any error. The
field is found by trial: without it, with the class' default instead, the same step succeeds.
Numbers that are no size are replaced by 1, too.
"""

import dis
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers.dynamic_module_utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from ift_scale.errors import DataError, IFTScaleError, Place, did_you_mean
from ift_scale.models.config_file import REMEDY

Attempt = Callable[[dict[str, Any]], object]
_SECONDS = 20.0
"""Time limit of the search, for classes whose every attempt is slow."""
_KEPT = {"model_type", "auto_map"}
_WRITTEN = (ValueError, TypeError, KeyError, RuntimeError, ImportError, OSError, AssertionError)
_MOST_CHARACTERS = 300
# transformers' checks of types (huggingface_hub.dataclasses): one type, and several.
_TYPES = re.compile(r"^Field '\w+' expected (.*?)(?: \(value: .*\))?$")
_UNION = re.compile(r"^Field '\w+' with value .* doesn't match any type in \((.*?)\)\. Errors")


@contextmanager
def refusing(
    source: str | Path, fields: dict[str, Any], step: str, attempt: Attempt
) -> Iterator[None]:
    """Raises any exception of its body as a DataError that names the field of `fields`.

    `step` completes "transformers cannot ..."; `attempt` does what the body does with other fields,
    and raises if it fails.
    """
    try:
        yield
    except IFTScaleError:
        raise
    except Exception as error:  # each class of transformers has its own errors
        path = () if _succeeds(attempt, fields) else _locate(fields, attempt, str(error))
        path = path or _named(error, fields)
        raise _refusal(source, fields, step, error, path) from error


def reason(error: BaseException) -> str | None:
    """Returns the sentence that an author wrote for an exception, without a full stop.

    None for messages of the interpreter and of C++ code, which describe their own operands.
    """
    error = _origin(error)
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = " ".join(text.split()).rstrip(".")
    if not isinstance(error, _WRITTEN) or not _was_raised(error.__traceback__) or " " not in text:
        return None
    if types := _TYPES.search(text):
        return f"expected {types[1].replace('NoneType', 'null')}"
    if union := _UNION.search(text):
        return f"expected one of: {re.sub('<class .([^>]*).>', _name, union[1])}"
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " ..."


def _origin(error: BaseException) -> BaseException:
    """Returns the first exception of those that only quote another, which add its type."""
    while error.__cause__ is not None and str(error.__cause__) in str(error):
        error = error.__cause__
    return error


_JSON_NAMES = {"NoneType": "null", "dict": "an object", "RopeParameters": "rotary parameters"}


def _name(type_name: re.Match[str]) -> str:
    """Returns a type's name in JSON's words."""
    name = type_name[1].rpartition(".")[2]
    return _JSON_NAMES.get(name, name)


def _was_raised(trace: TracebackType | None) -> bool:
    """True if a `raise` statement of Python code raised the exception."""
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    if "torch" in Path(trace.tb_frame.f_code.co_filename).parts:
        return False  # as C++ code: about tensors, not about the config
    code = trace.tb_frame.f_code.co_code
    return code[trace.tb_lasti] in (dis.opmap["RAISE_VARARGS"], dis.opmap["RERAISE"])


def _locate(fields: dict[str, Any], attempt: Attempt, message: str) -> tuple[str, ...]:
    """Returns the path of the field without which the attempt succeeds; () if there is none."""
    end = time.monotonic() + _SECONDS

    def inside(part: dict[str, Any], whole: Callable[[dict[str, Any]], Any]) -> tuple[str, ...]:
        # Several fields may make the step succeed. Those first that are most likely wrong.
        def rank(name: str) -> tuple[bool, bool, str]:
            return not _is_odd(part[name]), name not in message, name

        for name in sorted(part.keys() - _KEPT, key=rank):
            if time.monotonic() > end:
                return ()
            tries = [{key: value for key, value in part.items() if key != name}]
            if _is_odd(part[name]):
                # The default may not fit the other fields: 12 heads, and a width of 64.
                tries.append({**part, name: 1})
            if not any(_succeeds(attempt, whole(others)) for others in tries):
                continue
            if isinstance(value := part[name], dict):

                def rebuilt(new: dict[str, Any], name: str = name) -> Any:
                    return whole({**part, name: new})

                return name, *inside(value, rebuilt)
            return (name,)
        return ()

    return inside(fields, lambda part: part)


def _is_odd(value: Any) -> bool:
    """True for a whole number that is no size: 0, negative, or beyond 32 bits."""
    return type(value) is int and not 0 < value < 2**31


def _succeeds(attempt: Attempt, fields: dict[str, Any]) -> bool:
    try:
        attempt(fields)
    except Exception:  # as above
        return False
    return True


def _named(error: Exception, fields: dict[str, Any]) -> tuple[str, ...]:
    """Returns the field that transformers' own check names, if config.json has it."""
    found = re.match(r"Validation error for field '(\w+)'", str(error))
    return (found[1],) if found and found[1] in fields else ()


def _refusal(
    source: str | Path,
    fields: dict[str, Any],
    step: str,
    error: Exception,
    path: tuple[str, ...],
) -> DataError:
    value: Any = fields
    for name in path:
        value = value[name]
    problem = f"transformers {version('transformers')} cannot {step}"
    if why := reason(error):
        problem += f": {why}"
    else:
        problem += f"{' with this value' if path else ''}; it fails in {where(error)}"
    if not path:
        return DataError(Place(source), problem, _fetch(fields), fields.get("model_type"))
    known = _known(path)
    is_unknown = isinstance(value, str) and known and value not in known
    hint = f"; {did_you_mean(value, known)}" if is_unknown else ""
    return DataError(Place(source, field=".".join(path)), problem, REMEDY + hint, value)


def where(error: BaseException) -> str:
    """Returns the file and line of the model's class in which an exception was raised."""
    frames = traceback.extract_tb(_origin(error).__traceback__)
    of_class = [frame for frame in frames if _is_of_class(Path(frame.filename))]
    last = (of_class or frames)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def _is_of_class(file: Path) -> bool:
    is_own = TRANSFORMERS_DYNAMIC_MODULE_NAME in file.parts
    return is_own or file.name.startswith(("configuration", "model"))


def _known(path: Sequence[str]) -> list[str]:
    """Returns the names that a field of names may have; [] for other fields."""
    if path[-1] in ("rope_type", "type"):
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        return ["default", *ROPE_INIT_FUNCTIONS]
    if re.search(r"(^|_)act(ivation)?(_|$)", path[-1]):
        from transformers.activations import ACT2FN

        return list(ACT2FN)
    return []


def wanted(fields: dict[str, Any]) -> str:
    """Returns the version of transformers that has the class, as far as config.json shows."""
    written = fields.get("transformers_version")
    if not isinstance(written, str) or written == version("transformers"):
        return "the version of transformers that the model's authors name"
    return f"transformers {written.split('.dev')[0]} or newer, which has the class"


def _fetch(fields: dict[str, Any]) -> str:
    return f"Fetch the complete config.json of the model again, or install {wanted(fields)}"
