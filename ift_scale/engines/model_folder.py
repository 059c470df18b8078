"""Checks that a Hugging Face model folder is complete before anything starts."""

import re
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from ift_scale.config.section import BUILTIN_MODEL
from ift_scale.errors import DataError, Place
from ift_scale.io import text_file
from ift_scale.models.config_file import model_config, quantisation, refuse_encoder_decoder


def resolve(path: str, setting: str = "model.path", trained: bool = True) -> Path:
    """Returns the folder of a model: the embedded one for `world`, else the checked path.

    `setting` is the setting that errors name. `trained`: the model is a base model, whose weights
    must be plain numbers.
    """
    if path == BUILTIN_MODEL:
        return Path(str(resources.files("ift_scale.world") / "base_model"))
    folder = Path(path)
    if folder.suffix == ".gguf" and folder.is_file():
        remedy = f"Run `ift-scale import {path} FOLDER`, and set {setting} to that folder"
        raise DataError(Place(folder), "is a GGUF file, not a model folder", remedy)
    if not folder.is_dir():
        raise DataError(
            Place(folder),
            "no such folder",
            f"Set {setting} to a Hugging Face model folder on this machine",
        )
    check(folder)
    if trained:
        refuse_quantised(folder)
    return folder


SINGLE = "model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"
INDEX = "model.safetensors.index.json"
_READ = (".json", ".safetensors", ".model", ".jinja")
_SHARD = re.compile(r"[^/\0]{1,200}\.safetensors")


class StoredTensor(NamedTuple):
    """A tensor of a weight file, read from the file's header.

    `dtype` is safetensors' name: F32, BF16, ...
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: Path) -> list[Path]:
    """Returns the weight files that transformers loads.

    These are `model.safetensors`, else the shards that the index names. Other files in the folder,
    such as shards of an earlier save, are ignored. Raises DataError if there are none.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        remedy = "Fetch model.safetensors (or its shards and index); convert .bin weights"
        remedy += " to safetensors first"
        raise DataError(
            Place(folder),
            "contains no safetensors weights",
            remedy,
            sorted(p.name for p in folder.iterdir()),
        )
    shards = sorted(set(weight_map(folder / INDEX).values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise DataError(
            Place(folder / INDEX),
            f"{len(missing)} shards are missing",
            "Fetch the model again",
            missing,
        )
    return [folder / shard for shard in shards]


def weight_map(index: Path) -> dict[str, str]:
    """Returns the shard of each tensor according to the index file."""
    remedy = "Fetch the model again"
    shard_of = text_file.read_object(index, remedy).get("weight_map")
    place = Place(index, field="weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise DataError(place, "must be an object that maps tensors to files", remedy, shard_of)
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            place = Place(index, field=f"weight_map.{name}")
            raise DataError(place, "is not the name of a .safetensors file", remedy, shard)
    return shard_of


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns all tensors of the loaded weight files by name, read from the headers.

    Raises DataError for a truncated file, for a tensor that is missing from the shard given by the
    index, and for a tensor that two shards contain.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for name, (shape, dtype) in read_header(file).items():
            if name in tensors:
                problem = f"'{name}' is also in {tensors[name].file.name}"
                raise DataError(
                    Place(file),
                    problem,
                    "Save the model again into an empty folder, or fetch it again",
                )
            tensors[name] = StoredTensor(file, shape, dtype)
    if not (folder / SINGLE).is_file():
        for name, shard in weight_map(folder / INDEX).items():
            if name not in tensors or tensors[name].file != folder / shard:
                problem = f"maps '{name}' to {shard}, which does not contain it"
                raise DataError(
                    Place(folder / INDEX, field="weight_map"),
                    problem,
                    "Fetch the index and the shards again",
                )
    return tensors


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns (shape, dtype) of each tensor of a safetensors file, in the order of their bytes.

    Raises DataError for a truncated download or copy, and for a damaged header.
    """
    from safetensors import SafetensorError, safe_open

    text_file.refuse_unreadable(path)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        problem = f"is incomplete or damaged: it has {path.stat().st_size:,} bytes, and safetensors"
        problem += f" reports: {error}"
        raise DataError(Place(path), problem, "Copy or fetch the file again") from error


DEQUANTISED = ("fp8", "mxfp8", "mxfp4")
"""Quantisations that transformers undoes when it loads the weights (5.19, measured on a CPU)."""


def check(folder: Path) -> None:
    """Raises DataError if the config or any weight file is missing, incomplete or unusable.

    Unusable are a config.json that names no class, an encoder-decoder, and files that transformers
    would read and that are FIFOs, devices or links to nothing.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in _READ:
            text_file.refuse_unreadable(path)
    fields = model_config(folder)
    stored_tensors(folder)
    if fields.get("model_type") is None and not fields.get("auto_map"):
        raise DataError(
            Place(folder / "config.json", field="model_type"),
            "is missing, so the model's class is unknown",
            "Fetch config.json again: it must name the class, as save_pretrained writes it",
        )
    if fields.get("is_encoder_decoder") is True:
        refuse_encoder_decoder(folder / "config.json", fields.get("model_type"))


def has_own_tokenizer(folder: Path) -> bool:
    """True if Python files of the folder define its tokenizer (`auto_map`)."""
    return bool(_tokenizer_settings(folder).get("auto_map"))


def has_chat_template(folder: Path) -> bool:
    """True if the tokenizer in a model's folder comes with a chat template."""
    in_settings = bool(_tokenizer_settings(folder).get("chat_template"))
    return in_settings or (folder / "chat_template.jinja").is_file()


def _tokenizer_settings(folder: Path) -> dict[str, Any]:
    """Returns tokenizer_config.json, empty if it is damaged: `PromptTokenizer` refuses it."""
    try:
        return text_file.read_object(folder / TOKENIZER_CONFIG, "")
    except DataError:
        return {}


def refuse_quantised(folder: Path) -> None:
    """Raises DataError for a quantisation that cannot be undone."""
    method = quantisation(model_config(folder))
    if method is not None and method not in DEQUANTISED:
        problem = (
            f"the weights are quantised, which can be undone for {', '.join(DEQUANTISED)} only"
        )
        remedy = "Give the model in bfloat16, float16 or float32, from which it was quantised"
        place = Place(folder / "config.json", field="quantization_config")
        raise DataError(place, problem, remedy, method)


def embedding_rows(folder: Path) -> int:
    """Returns the number of rows of the embedding; token ids must be below it.

    Raises DataError if config.json lacks vocab_size.
    """
    settings = model_config(folder)
    rows = settings.get("vocab_size", (settings.get("text_config") or {}).get("vocab_size"))
    if not isinstance(rows, int):
        raise DataError(
            Place(folder / "config.json", field="vocab_size"),
            "is missing",
            "Give a causal language model's folder",
            rows,
        )
    return rows
