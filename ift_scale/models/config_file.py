"""Reads a model's config.json and checks what this package itself reads from it.

Imports neither torch nor transformers; `config_class` checks the rest.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ift_scale.errors import DataError, Place
from ift_scale.io import text_file

_TYPES: dict[str, tuple[type, str]] = {
    "architectures": (list, "a list of class names"),
    "auto_map": (dict, "an object"),
    "compression_config": (dict, "an object"),
    "dtype": (str, "a string"),
    "is_encoder_decoder": (bool, "true or false"),
    "model_type": (str, "a string"),
    "quantization_config": (dict, "an object"),
    "text_config": (dict, "an object"),
    "torch_dtype": (str, "a string"),
    "transformers_version": (str, "a string"),
}
"""Fields that are read before transformers checks them; null is the same as a missing one."""
CONTEXT_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "n_ctx",
    "context_length",
)
"""Fields that state the maximum length of a text in tokens, in order of precedence."""
_COUNT = re.compile(r"n_layers?|num_\w*layers|\w*num_\w*experts|n_\w*experts")
_MOST = 10_000
"""Largest number of layers or experts: each is a Python object, and a few bytes of config.json must
not fill the memory."""
_SIZES = ("vocab_size", "hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer")
"""Sizes without which there is no model. Others may be 0 in classes that do not use them."""
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
REMEDY = "Correct it, or fetch config.json again"


def model_config(folder: Path) -> dict[str, Any]:
    """Returns the fields of the folder's config.json; raises like `read_config_file`."""
    return read_config_file(folder / "config.json")


def read_config_file(path: Path) -> dict[str, Any]:
    """Returns the fields of a config.json, which may have another name.

    Nulls in `auto_map` are left out. Raises DataError for a file that is missing or not a JSON
    object, and for the field if one of `_TYPES` has another type, one of `_SIZES` is below 1, a
    value is NaN, or there are more than 10,000 layers or experts.
    """
    if not path.exists():
        raise DataError(
            Place(path), "is missing", "Give a folder as transformers' save_pretrained writes it"
        )
    fields = {
        name: _with_floats(value)
        for name, value in text_file.read_object(path, "Fetch the model again").items()
    }
    check_fields(fields, path)
    # transformers reads a null as a class.
    own = {name: kind for name, kind in (fields.pop("auto_map", None) or {}).items() if kind}
    return fields | {"auto_map": own} if own else fields


def has_own_class(fields: Mapping[str, Any]) -> bool:
    """True if Python files of the model's folder define its class, or its config's class."""
    own = fields.get("auto_map") or {}
    return any(own.get(name) for name in ("AutoConfig", "AutoModelForCausalLM"))


def check_fields(fields: dict[str, Any], source: str | Path) -> None:
    """Raises DataError as `read_config_file` does for fields."""
    parts = [("", fields), ("text_config.", fields.get("text_config"))]
    for prefix, part in parts:
        for name, (kind, described) in _TYPES.items():
            value = part.get(name) if isinstance(part, dict) else None
            if value is not None and not isinstance(value, kind):
                place = Place(source, field=f"{prefix}{name}")
                raise DataError(place, f"must be {described}", REMEDY, value)
        for name in _SIZES:
            value = part.get(name) if isinstance(part, dict) else None
            if isinstance(value, int) and value < 1:
                place = Place(source, field=f"{prefix}{name}")
                raise DataError(place, "must be at least 1", REMEDY, value)
    for path, value in _values(fields, ""):
        place = Place(source, field=path)
        if isinstance(value, float) and math.isnan(value):
            raise DataError(place, "must not be NaN", REMEDY, value)
        is_count = isinstance(value, int) and _COUNT.fullmatch(path.rpartition(".")[2])
        if is_count and value > _MOST:
            raise DataError(place, f"must be at most {_MOST:,}", REMEDY, value)


def _values(part: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of all that is neither an object nor a list."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield from _values(value, f"{path}.{name}" if path else name)
    elif isinstance(part, list):
        for value in part:
            yield from _values(value, path)
    else:
        yield path, part


def _with_floats(value: Any) -> Any:
    """Returns the value with numbers in place of transformers' {"__float__": "Infinity"}."""
    if isinstance(value, list):
        return [_with_floats(part) for part in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:
        text = value["__float__"]
        return _FLOATS.get(text, value) if isinstance(text, str) else value
    return {name: _with_floats(part) for name, part in value.items()}


def quantisation(fields: dict[str, Any]) -> str | None:
    """Returns the quantisation method that a config.json names; None if it names none."""
    for part in (fields, fields.get("text_config") or {}):
        settings = part.get("quantization_config") or part.get("compression_config")
        if settings:
            by_bits = any(settings.get(name) for name in ("load_in_4bit", "load_in_8bit"))
            return str(settings.get("quant_method") or ("bitsandbytes" if by_bits else "unnamed"))
    return None


def refuse_encoder_decoder(source: str | Path, model_type: Any) -> NoReturn:
    """Raises DataError: an encoder-decoder has no next-token probabilities of a prompt."""
    raise DataError(
        Place(source, field="is_encoder_decoder"),
        "an encoder-decoder answers from a separate input and does not continue a prompt",
        "Give a causal language model's folder",
        model_type,
    )
