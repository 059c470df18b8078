"""What a Hugging Face model folder must hold, checked before anything starts."""

import json
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from ift_scale.config import BUILTIN_MODEL
from ift_scale.errors import DataError, Place


def resolve(path: str, setting: str = "model.path") -> Path:
    """The folder of a model by `setting`: the embedded one for `world`, else the checked path."""
    if path == BUILTIN_MODEL:
        return Path(str(resources.files("ift_scale.world") / "base_model"))
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(
            Place(folder),
            "no such folder",
            f"Set {setting} to a Hugging Face model folder on this machine",
        )
    check(folder)
    return folder


def model_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json."""
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            Place(path), "is missing", "Give a folder as transformers' save_pretrained writes it"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(Place(path), f"not valid JSON: {error}", "Fetch the model again") from error


def hidden_size(folder: Path) -> int:
    """Width of the model's hidden states, of a multimodal one's text model."""
    settings = model_config(folder)
    found = settings.get("hidden_size", settings.get("text_config", {}).get("hidden_size"))
    if found is None:
        raise DataError(
            Place(folder / "config.json", field="hidden_size"),
            "missing",
            "Give a causal language model's folder",
        )
    return found


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Stored(NamedTuple):
    """A tensor of a weight file, from the file's header. `dtype` is as safetensors names it: F32, BF16, ..."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: Path) -> list[Path]:
    """The weight files that count, chosen as transformers chooses them: `model.safetensors`, else the shards that the index names.

    Other files beside them, such as shards of an earlier save, are not read. DataError where there are none.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        remedy = "Fetch model.safetensors (or its shards and index); .bin weights must be converted to safetensors first"
        raise DataError(
            Place(folder),
            "holds no safetensors weights",
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
    """The index's shard of each tensor."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not found or not all(isinstance(shard, str) for shard in found.values()):
            raise TypeError("no shard is named")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"is not an index of weights: {type(error).__name__}: {error}"
        raise DataError(
            Place(index, field="weight_map"), problem, "Fetch the model again"
        ) from error
    return found


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of the weight files that count, by name, from the files' headers.

    DataError for a file that is cut off, for a tensor that the index looks for in a shard that does not hold it, and for one that
    two shards hold.
    """
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        for name, (shape, dtype) in header(file).items():
            if name in found:
                problem = f"'{name}' is in {found[name].file.name} too"
                raise DataError(
                    Place(file),
                    problem,
                    "Save the model again into an empty folder, or fetch it again",
                )
            found[name] = Stored(file, shape, dtype)
    if not (folder / SINGLE).is_file():
        for name, shard in weight_map(folder / INDEX).items():
            if name not in found or found[name].file != folder / shard:
                problem = f"says that '{name}' is in {shard}, which does not hold it"
                raise DataError(
                    Place(folder / INDEX, field="weight_map"),
                    problem,
                    "Fetch the index and the shards again",
                )
    return found


def header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype) of each tensor of a safetensors file.

    DataError for a file that is shorter or longer than its header says: a download or copy that was cut off.
    """
    size = path.stat().st_size
    entries: dict[str, Any] = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            described = json.loads(file.read(length)) if 8 + length <= size else {}
            entries = {name: entry for name, entry in described.items() if name != "__metadata__"}
            tensors = {
                name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in entries.items()
            }
            expected = 8 + length + max(entry["data_offsets"][1] for entry in entries.values())
        except (ValueError, KeyError, TypeError, AttributeError):
            expected = -1
    if expected != size:
        wanted = (
            f"its header describes {expected:,} bytes"
            if expected > 0
            else "its header is not whole"
        )
        raise DataError(
            Place(path),
            f"is half written: it has {size:,} bytes and {wanted}",
            "Copy or fetch the file again",
        )
    return tensors


def check(folder: Path) -> None:
    """Raises DataError where config or weights are missing or half written, also single shards of an index."""
    model_config(folder)
    stored_tensors(folder)


def embedding_rows(folder: Path) -> int:
    """Rows of the model's embedding: token ids are below this. DataError where config.json does not say."""
    settings = model_config(folder)
    found = settings.get("vocab_size", settings.get("text_config", {}).get("vocab_size"))
    if not isinstance(found, int):
        raise DataError(
            Place(folder / "config.json", field="vocab_size"),
            "is missing",
            "Give a causal language model's folder",
            found,
        )
    return found
