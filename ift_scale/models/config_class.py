"""A model's config as transformers reads it, and its class; one clear error if there is none.

With `trust_remote_code`, a folder's own Python files define the class. transformers copies them to
its module cache, under the digest of their content, and imports them from there.
"""

import json
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils.hub import HF_MODULES_CACHE

from ift_scale.errors import DataError, Place, nearest
from ift_scale.io.locks import build_once
from ift_scale.models.config_errors import reason, refusing, wanted, where
from ift_scale.models.config_file import (
    REMEDY,
    check_fields,
    model_config,
    refuse_encoder_decoder,
)

_OWN_CODE = "auto_map"
_FETCH = "Correct the folder's code, or fetch its Python files again"
_TRUST = (
    "If you trust their authors, set model.trust_remote_code to true (--trust-remote-code for"
    " `plan --model` and `doctor`). It runs the folder's Python files, which can do anything that"
    " your account can do"
)


def class_and_config(folder: Path, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Returns a folder's class and config; raises like `settings_of` and `class_of`."""
    settings = read_config(folder, trust_remote_code)
    return class_of(settings, folder / "config.json", trust_remote_code), settings


def read_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """Returns a folder's config as transformers reads it; raises like `settings_of`."""
    return settings_of(model_config(folder), folder / "config.json", trust_remote_code)


def settings_of(
    fields: dict[str, Any], source: str | Path = "config.json", trust_remote_code: bool = False
) -> Any:
    """Returns the config that transformers makes of a config.json's fields.

    The folder's own code is next to `source`. Raises DataError, located at `source`, if
    transformers has no class for it or refuses a field, if the class is in the folder's own files
    and `trust_remote_code` is False, and for an encoder-decoder.
    """
    check_fields(fields, source)
    _refuse_unknown(fields, Path(source), trust_remote_code)

    def read(fields: dict[str, Any]) -> Any:
        return raw_settings(fields, source, trust_remote_code)

    with refusing(source, fields, "read it", read):
        settings = read(fields)
    if settings.is_encoder_decoder:
        refuse_encoder_decoder(source, settings.model_type)
    return settings


def raw_settings(
    fields: dict[str, Any], source: str | Path, trust_remote_code: bool = False
) -> Any:
    """As `settings_of`, with transformers' own exceptions."""
    reference = (fields.get(_OWN_CODE) or {}).get("AutoConfig")
    if trust_remote_code and reference:
        kind = _own_class(reference, Place(source, field=f"{_OWN_CODE}.AutoConfig"))
        kind.register_for_auto_class()
        settings = kind.from_dict(dict(fields))
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config.json"
            file.write_text(json.dumps(fields), encoding="utf-8")
            settings = AutoConfig.from_pretrained(file, local_files_only=True)
    if not isinstance(settings.get_text_config(), PreTrainedConfig):
        raise TypeError(f"{type(settings).__name__} does not read text_config")
    return settings


def hidden_size(folder: Path, trust_remote_code: bool = False) -> int:
    """Returns the width of the model's hidden states (of the text model if multimodal).

    The config's class knows which field has it: n_embd, d_model and others.
    """
    settings = read_config(folder, trust_remote_code).get_text_config()
    size = getattr(settings, "hidden_size", None)
    if not isinstance(size, int):
        raise DataError(
            Place(folder / "config.json", field="hidden_size"),
            "missing",
            "Give a causal language model's folder",
        )
    return size


def class_of(settings: Any, source: str | Path, trust_remote_code: bool = False) -> Any:
    """Returns the class of the causal language model, or the multimodal one that contains it.

    Raises DataError if there is none, or if the folder's own code cannot be imported.
    """
    reference = _own_reference(settings)
    if trust_remote_code and reference:
        place = Place(source, field=f"{_OWN_CODE}.AutoModelForCausalLM")
        return _own_class(reference, place, PreTrainedModel)
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if type(settings) in mapping:
            return mapping[type(settings)]
    raise _no_causal_model(settings, source)


def _no_causal_model(settings: Any, source: str | Path) -> DataError:
    reference = _own_reference(settings)
    problem = f"transformers {transformers.__version__} has no causal language model for it"
    if reference:
        problem += f"; the folder's own files have one ({reference}), but they are not run"
        return DataError(Place(source, field=_OWN_CODE), problem, _TRUST, settings.model_type)
    place, remedy = Place(source, field="model_type"), "Give a causal language model's folder"
    return DataError(place, problem, remedy, settings.model_type)


def _own_reference(settings: Any) -> Any:
    """Returns the causal language model in the folder's own code, FILE.CLASS; None without one."""
    return (getattr(settings, _OWN_CODE, None) or {}).get("AutoModelForCausalLM")


def text_model(
    settings: Any, source: str | Path, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Returns (class, config) of the causal language model, the one in a multimodal model if any.

    A class of the folder's own code is taken as it is. Raises DataError if there is none.
    """
    text = settings.get_text_config(decoder=True)
    is_own = trust_remote_code and _own_reference(settings)
    if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING and not is_own:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(text)], text
    kind = class_of(settings, source, trust_remote_code)
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.values():
        raise _no_causal_model(settings, source)
    return kind, settings


def empty_model(settings: Any, source: str | Path, trust_remote_code: bool = False) -> Any:
    """Returns the model of `text_model` on the meta device, with transformers' own exceptions.

    Raises ValueError for a size of 0, with which torch builds layers that compute nothing.
    """
    kind, text = text_model(settings, source, trust_remote_code)
    with torch.device("meta"):
        model = kind._from_config(text)
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0:
            raise ValueError(f"{name} would be empty, of shape {list(parameter.shape)}")
    return model


def build(
    fields: dict[str, Any], source: str | Path = "config.json", trust_remote_code: bool = False
) -> Any:
    """Returns the model of `text_model` on the meta device.

    Raises DataError like `settings_of` and `text_model`, and if transformers cannot build it.
    """
    settings = settings_of(fields, source, trust_remote_code)

    def build_again(fields: dict[str, Any]) -> Any:
        found = raw_settings(fields, source, trust_remote_code)
        return empty_model(found, source, trust_remote_code)

    with refusing(source, fields, "build the model", build_again):
        return empty_model(settings, source, trust_remote_code)


def _refuse_unknown(fields: dict[str, Any], source: Path, trust_remote_code: bool) -> None:
    """Raises DataError if no class is known for config.json's model_type."""
    name, place = fields.get("model_type"), Place(source, field="model_type")
    if trust_remote_code and fields.get(_OWN_CODE):
        return
    if name in CONFIG_MAPPING:
        return
    if fields.get(_OWN_CODE):
        files = ", ".join(sorted(path.name for path in source.parent.glob("*.py"))) or "no file"
        problem = f"the model's class is defined by the folder's own code ({files}), which is not"
        raise DataError(Place(source, field=_OWN_CODE), f"{problem} run", _TRUST, name)
    if name is None:
        remedy = "Fetch config.json again: it must name the class, as save_pretrained writes it"
        raise DataError(place, "is missing, so the model's class is unknown", remedy)
    problem = f"transformers {transformers.__version__}, which is installed, has no such class"
    written = fields.get("transformers_version")
    problem += f"; config.json was written by {written}" if written else ""
    close = nearest(name, CONFIG_MAPPING, cutoff=0.7)
    remedy = f"Did you mean '{close}'? If not, install" if close else "Install"
    remedy += f" {wanted(fields)}"
    raise DataError(place, problem, remedy, name)


def _own_class(reference: Any, place: Place, base: type = PreTrainedConfig) -> Any:
    """Returns a class of the folder's own code, one process at a time: all share the cache.

    Raises DataError at `place` if there is no such class, or if its file cannot be imported.
    """
    folder = Path(place.file).parent
    if isinstance(reference, str) and "--" in reference:
        problem = "names code of another repository, and only code in the model's folder is run"
        remedy = "Copy that repository's Python files into the folder, and write 'FILE.CLASS' here"
        raise DataError(place, problem, remedy, reference)
    if not isinstance(reference, str) or not re.fullmatch(r"[^.]+\.\w+", reference):
        raise DataError(place, "must be 'FILE.CLASS', a class of the folder", REMEDY, reference)
    file, _, name = reference.partition(".")
    if not (folder / f"{file}.py").is_file():
        raise DataError(place, f"the folder has no {file}.py", _FETCH, reference)
    try:
        with build_once(Path(HF_MODULES_CACHE) / "ift_scale"):
            kind = get_class_from_dynamic_module(reference, str(folder), local_files_only=True)
    except (Exception, SystemExit) as error:  # a module can raise anything while it is imported
        if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
            problem = f"{Path(str(error.obj.__file__)).name} has no {error.name}"
        elif isinstance(error, FileNotFoundError) and error.filename:
            problem = f"the folder has no {Path(error.filename).name}, which {file}.py imports"
        elif isinstance(error, SyntaxError):
            problem = (
                f"{file}.py, or a file that it imports, is not valid Python (line {error.lineno})"
            )
        else:
            why = reason(error) or f"it fails in {where(error)}"
            problem = f"{file}.py cannot be imported: {why}"
        raise DataError(place, problem, _FETCH, reference) from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise DataError(place, f"{name} is no {base.__name__}", _FETCH, reference)
    return kind
