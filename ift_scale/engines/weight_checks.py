"""Checks that a folder's weight files match its config.json, before anything is loaded.

transformers fills missing tensors with random numbers, ignores unknown tensors and only logs both;
under ZeRO-3 it does not even log them. Here its own loader runs on tensors without data, built from
the names and shapes in the files' headers, so its rules for renamed, merged, tied and ignored
tensors apply. This takes less than a second for 70B.
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors import safe_open
from transformers import core_model_loading
from transformers.utils import logging

from ift_scale.engines.model_folder import (
    INDEX,
    SINGLE,
    StoredTensor,
    stored_tensors,
    weight_files,
    weight_map,
)
from ift_scale.errors import DataError, Place
from ift_scale.models import config_class
from ift_scale.models.config_errors import refusing
from ift_scale.models.config_file import model_config, quantisation

# Buffers that older versions of transformers stored and models compute themselves. A tensor named
# `bias` is one only if it is a causal mask (`_is_computed`).
_COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|position_ids)$"
)
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")
_INTEGERS = ("I", "U", "BOOL")
_NAMES_SHOWN = 5


def check(folder: str | Path, trust_remote_code: bool = False) -> None:
    """Raises DataError if tensors are missing, unexpected or of another shape than config.json's.

    Also raises DataError for a model without a class (`config_class`). Names of quantised weights
    depend on the method and are left to transformers.
    """
    folder = Path(folder)
    stored = stored_tensors(folder)
    kind, settings = config_class.class_and_config(folder, trust_remote_code)
    if quantisation(model_config(folder)):
        print(f"{folder}: weight names and shapes are not checked: quantised", flush=True)
        return
    fields, source = model_config(folder), folder / "config.json"

    def build(fields: dict[str, Any]) -> Any:
        with torch.device("meta"):
            return kind._from_config(config_class.raw_settings(fields, source, trust_remote_code))

    with refusing(source, fields, "build the model", build):
        model, report = _loaded_without_data(kind, settings, stored)
    expected = model.state_dict()
    _refuse_integers(
        folder,
        [name for name in stored if name in expected and expected[name].is_floating_point()],
        stored,
    )
    _refuse_wrapped(folder, stored, expected, f"{model.base_model_prefix}.")
    _refuse_missing(folder, report["missing_keys"], stored)
    _refuse_mismatched(folder, report["mismatched_keys"])
    _refuse_unexpected(
        folder,
        [name for name in report["unexpected_keys"] if not _is_computed(name, stored)],
        stored,
    )
    _refuse_torn_ties(folder, stored, model.all_tied_weights_keys)


def _loaded_without_data(kind: Any, settings: Any, stored: dict[str, StoredTensor]) -> Any:
    """Returns (model on the meta device, transformers' loading report)."""
    tensors = {
        name: torch.empty(tensor.shape, dtype=torch.bfloat16, device="meta")
        for name, tensor in stored.items()
    }
    # transformers joins some tensors on the CPU (Qwen4's embeddings of each layer).
    with quiet(), patch.object(core_model_loading, "_materialize_copy", _without_data):
        return kind.from_pretrained(
            None,
            config=settings,
            state_dict=tensors,
            dtype=torch.bfloat16,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )


def _without_data(
    tensor: torch.Tensor, device: Any = None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """As transformers' function that reads a tensor, but on the meta device whatever `device`."""
    return tensor[...] if dtype is None else tensor[...].to(dtype)


def check_for_vllm(folder: str | Path, trust_remote_code: bool = False) -> None:
    """As `check`; also raises DataError if vLLM would read other weight files than transformers.

    vLLM follows the index if there is one, and otherwise reads every *.safetensors file.
    """
    folder = Path(folder)
    check(folder, trust_remote_code)
    counted = {file.name for file in weight_files(folder)}
    by_index = (folder / INDEX).is_file()
    read = (
        set(weight_map(folder / INDEX).values())
        if by_index
        else {file.name for file in folder.glob("*.safetensors")}
    )
    if read != counted:
        problem = f"vLLM reads {', '.join(sorted(read))}, and transformers and the trainer read"
        remedy = "Move the files that do not belong to the model elsewhere"
        remedy += f", including {INDEX}" if by_index else ""
        raise DataError(Place(folder), f"{problem} {SINGLE}", remedy)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' own messages and progress bar."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _is_computed(name: str, stored: dict[str, StoredTensor]) -> bool:
    shape = stored[name].shape if name in stored else ()
    is_mask = _MASK.search(name) is not None and len(shape) == 4 and shape[2] == shape[3]
    return is_mask or _COMPUTED.search(name) is not None


def _refuse_wrapped(
    folder: Path, stored: Collection[str], expected: Collection[str], prefix: str
) -> None:
    """Refuses a wrapper's prefix, which vLLM and transformers under ZeRO-3 do not strip."""
    wrapped = [
        name
        for name in stored
        if name not in expected
        and name.startswith(prefix)
        and name.removeprefix(prefix) in expected
    ]
    if wrapped:
        _refuse(folder, f"have names with a wrapper's prefix '{prefix}'", wrapped, _UNWRAP)


_UNWRAP = (
    "Save the model that is inside the wrapper (PEFT: merge_and_unload() first), or remove the"
    " prefix from the names"
)


def _refuse_missing(folder: Path, missing: Collection[str], stored: Collection[str]) -> None:
    if not missing:
        return
    remedy = "Fetch or save the model again, or provide the config.json of these weights"
    if any(name.endswith(f".{lacking}") for lacking in missing for name in stored):
        remedy = _UNWRAP
    elif set(missing) <= {"lm_head.weight"}:
        remedy += " (with tie_word_embeddings true, the head is the embedding)"
    _refuse(folder, "lack tensors of config.json's model", missing, remedy)


def _refuse_mismatched(folder: Path, mismatched: Collection[tuple[str, Any, Any]]) -> None:
    named = [
        f"{name} is {tuple(actual)}, not {tuple(expected)}" for name, actual, expected in mismatched
    ]
    if named:
        remedy = "Provide the config.json of these weights"
        _refuse(folder, "contain tensors of another shape than config.json gives", named, remedy)


def _refuse_integers(folder: Path, names: Collection[str], stored: dict[str, StoredTensor]) -> None:
    """Refuses integers, which transformers would cast without a quantisation's scales."""
    integers = [
        f"{name} is {stored[name].dtype}"
        for name in names
        if stored[name].dtype.rstrip("0123456789") in _INTEGERS
    ]
    if integers:
        remedy = "Fetch the model in float32, bfloat16 or float16, or provide the config.json with"
        remedy += " its quantization_config"
        problem = "contain integers, and config.json names no quantisation"
        _refuse(folder, problem, integers, remedy)


def _refuse_unexpected(
    folder: Path, unexpected: Collection[str], stored: dict[str, StoredTensor]
) -> None:
    if unexpected:
        files = {stored[name].file for name in unexpected if name in stored}
        path = files.pop() if len(files) == 1 else folder
        remedy = "Provide the config.json of these weights, or remove what is not part of the model"
        problem = "contain tensors that config.json's model does not have"
        _refuse(path, problem, unexpected, remedy)


def _refuse_torn_ties(folder: Path, stored: dict[str, StoredTensor], tied: dict[str, str]) -> None:
    """Refuses a tied pair with different values: transformers unties it and vLLM does not."""
    for target, source in tied.items():
        if (
            target in stored
            and source in stored
            and not torch.equal(_read(target, stored), _read(source, stored))
        ):
            problem = f"ties {target} to {source}, but their values in the weight files differ"
            remedy = (
                "Set tie_word_embeddings to false, or remove the wrong one from the weight file"
            )
            place = Place(folder / "config.json", field="tie_word_embeddings")
            raise DataError(place, problem, remedy)


def _read(name: str, stored: dict[str, StoredTensor]) -> torch.Tensor:
    with safe_open(os.fspath(stored[name].file), framework="pt") as tensors:
        return tensors.get_tensor(name)


def _refuse(path: Path, problem: str, names: Collection[str], remedy: str) -> None:
    first = sorted(names)
    more = f" and {len(first) - _NAMES_SHOWN} more" if len(first) > _NAMES_SHOWN else ""
    raise DataError(
        Place(path), f"the weights {problem}: {', '.join(first[:_NAMES_SHOWN])}{more}", remedy
    )
