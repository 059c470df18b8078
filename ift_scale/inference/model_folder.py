"""What a Hugging Face model folder must hold, checked before anything starts."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from ift_scale.config import BUILTIN_MODEL
from ift_scale.errors import DataError, Place


def resolve(path: str, setting: str = "model.path") -> Path:
    """The folder of a model by `setting`: the embedded one for `world`, else the checked path."""
    if path == BUILTIN_MODEL:
        return Path(str(resources.files("ift_scale.world") / "base_model"))
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(Place(folder), "no such folder", f"Set {setting} to a Hugging Face model folder on this machine")
    check(folder)
    return folder


def model_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json."""
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(Place(path), "is missing", "Give a folder as transformers' save_pretrained writes it") from None
    except json.JSONDecodeError as error:
        raise DataError(Place(path), f"not valid JSON: {error}", "Fetch the model again") from error


def hidden_size(folder: Path) -> int:
    """Width of the model's hidden states, of a multimodal one's text model."""
    settings = model_config(folder)
    found = settings.get("hidden_size", settings.get("text_config", {}).get("hidden_size"))
    if found is None:
        raise DataError(Place(folder / "config.json", field="hidden_size"), "missing", "Give a causal language model's folder")
    return found


def check_whole(path: Path) -> None:
    """DataError for a safetensors file that is shorter or longer than its header says: a download or copy that was cut off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        try:
            described = json.loads(file.read(header)) if 8 + header <= size else None
            tensors = [entry for name, entry in (described or {}).items() if name != "__metadata__"]
            expected = 8 + header + max(entry["data_offsets"][1] for entry in tensors)
        except (ValueError, KeyError, TypeError):
            expected = -1
    if expected != size:
        wanted = f"its header describes {expected:,} bytes" if expected > 0 else "its header is not whole"
        raise DataError(Place(path), f"is half written: it has {size:,} bytes and {wanted}", "Copy or fetch the file again")


def check(folder: Path) -> None:
    """Raises DataError where config or weights are missing or half written, also single shards of an index."""
    model_config(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise DataError(Place(index), f"{len(missing)} shards are missing", "Fetch the model again", missing)
        for shard in sorted(shards):
            check_whole(folder / shard)
    elif (folder / "model.safetensors").is_file():
        check_whole(folder / "model.safetensors")
    else:
        remedy = "Fetch model.safetensors (or its shards and index); .bin weights must be converted to safetensors first"
        raise DataError(Place(folder), "holds no safetensors weights", remedy, sorted(p.name for p in folder.iterdir()))
