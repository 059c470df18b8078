"""The transformers class and config of a model folder; one clear error if the model cannot be used.

With `trust_remote_code`, a folder's own Python files define the class. transformers copies them to
its module cache, under the digest of their content, and imports them from there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    FineGrainedFP8Config,
    Mxfp4Config,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils.hub import HF_MODULES_CACHE

from ift_scale.engines.model_folder import (
    DEQUANTISED,
    model_config,
    quantisation,
    refuse_encoder_decoder,
)
from ift_scale.errors import DataError, Place
from ift_scale.io.locks import build_once

_AUTO_CLASS = "AutoModelForCausalLM"
_OWN_CODE = "auto_map"


def read_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """Returns a folder's config as transformers reads it.

    Raises DataError if transformers has no class for it, if the class is in the folder's own files
    and `trust_remote_code` is False, and for an encoder-decoder.
    """
    fields = model_config(folder)
    _refuse_unknown(folder, fields, trust_remote_code)
    try:
        with _module_cache(fields, trust_remote_code):
            settings = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # its fields are checked by the class, with any kind of error
        problem = f"transformers {transformers.__version__} cannot read it:"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            Place(folder / "config.json"),
            f"{problem} {reason}",
            f"Fetch the model again, or install {_wanted(fields)}",
        ) from error
    if settings.is_encoder_decoder:
        refuse_encoder_decoder(folder, settings.model_type)
    return settings


def hidden_size(folder: Path, trust_remote_code: bool = False) -> int:
    """Returns the width of the model's hidden states (of the text model if multimodal).

    The config's class knows which field has it: n_embd, d_model and others.
    """
    settings = read_config(folder, trust_remote_code).get_text_config()
    size = getattr(settings, "hidden_size", None)
    if not isinstance(size, int):
        raise DataError(
            _place(folder, "hidden_size"), "missing", "Give a causal language model's folder"
        )
    return size


def class_of(folder: Path, settings: Any, trust_remote_code: bool = False) -> Any:
    """Returns the class of the causal language model, or the multimodal one that contains it.

    Raises DataError if there is none.
    """
    reference = (getattr(settings, _OWN_CODE, None) or {}).get(_AUTO_CLASS)
    if trust_remote_code and reference:
        with _module_cache(model_config(folder), True):
            return get_class_from_dynamic_module(reference, str(folder), local_files_only=True)
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if type(settings) in mapping:
            return mapping[type(settings)]
    problem = f"transformers {transformers.__version__} has no causal language model for it"
    if reference:
        problem += f"; the folder's own files have one ({reference}), but they are not run"
        raise DataError(_place(folder, _OWN_CODE), problem, _TRUST, settings.model_type)
    raise DataError(
        _place(folder, "model_type"),
        problem,
        "Give a causal language model's folder",
        settings.model_type,
    )


def load(kind: Any, folder: Path | None, settings: Any, dtype: torch.dtype, **options: Any) -> Any:
    """Returns a model in `dtype`, quantised weights as plain numbers.

    `options` are further arguments of `from_pretrained`, such as `state_dict` instead of a folder.
    """
    method = quantisation(settings.to_dict())
    if method in DEQUANTISED:
        undone = Mxfp4Config if method == "mxfp4" else FineGrainedFP8Config
        options["quantization_config"] = undone(dequantize=True)
    model = kind.from_pretrained(
        folder, config=settings, dtype=dtype, local_files_only=True, **options
    )
    if method in DEQUANTISED:
        # An export must not quantise them again.
        model._weight_conversions = None
        for parameter in model.parameters():
            if parameter.dtype == torch.bfloat16:  # MXFP4 becomes bfloat16, whatever `dtype` is
                parameter.data = parameter.data.to(dtype)
    return model


_TRUST = (
    "If you trust their authors, set model.trust_remote_code to true. It runs the folder's Python"
    " files, which can do anything that your account can do"
)


def _refuse_unknown(folder: Path, fields: dict[str, Any], trust_remote_code: bool) -> None:
    """Raises DataError if no class is known for config.json's model_type."""
    name = fields.get("model_type")
    if name in CONFIG_MAPPING or (trust_remote_code and fields.get(_OWN_CODE)):
        return
    if fields.get(_OWN_CODE):
        files = ", ".join(sorted(path.name for path in folder.glob("*.py"))) or "no file"
        problem = f"the model's class is defined by the folder's own code ({files}), which is not"
        raise DataError(_place(folder, _OWN_CODE), f"{problem} run", _TRUST, name)
    problem = f"transformers {transformers.__version__}, which is installed, has no such class"
    written = fields.get("transformers_version")
    problem += f"; config.json was written by {written}" if written else ""
    raise DataError(_place(folder, "model_type"), problem, f"Install {_wanted(fields)}", name)


def _wanted(fields: dict[str, Any]) -> str:
    """Returns the version of transformers that knows the class, as far as config.json says."""
    written = fields.get("transformers_version")
    if not isinstance(written, str) or written == transformers.__version__:
        return "the version of transformers that the model's authors name"
    return f"transformers {written.split('.dev')[0]} or newer, which has the class"


def _place(folder: Path, field: str) -> Place:
    return Place(folder / "config.json", field=field)


@contextmanager
def _module_cache(fields: dict[str, Any], trust_remote_code: bool) -> Iterator[None]:
    """Serialises the processes that copy a folder's own code to transformers' module cache."""
    if not trust_remote_code or _OWN_CODE not in fields:
        yield
        return
    with build_once(Path(HF_MODULES_CACHE) / "ift_scale"):
        yield
