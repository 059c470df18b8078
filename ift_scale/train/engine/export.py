"""Exports the trained weights as a Hugging Face folder, one parameter at a time.

Under ZeRO-3 each parameter is gathered by itself, or with those that are stored as one tensor
(`stored_names`). All sizes are known beforehand, so the header of each safetensors file is written
first and the values follow. Rank 0 needs the memory of one such group in addition to its training
state, whatever the size of a file.
"""

import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from ift_scale.engines import model_folder
from ift_scale.estimate import host
from ift_scale.models.config_file import model_config
from ift_scale.ranks import activity
from ift_scale.train.engine.stored_names import StoredGroup, as_stored, stored_groups

SHARD_BYTES = 5 << 30
_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}
_BUFFER_BYTES = 32 << 20


def gathered(
    model: nn.Module, groups: list[StoredGroup], gather: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yields (stored name, whole tensor), valid until the next iteration. Every rank must iterate.

    `gather`: the parameters are partitioned by ZeRO-3.
    """
    for tensors, _ in groups:
        parameters = [t for t in tensors.values() if isinstance(t, nn.Parameter)]
        with deepspeed.zero.GatheredParameters(parameters, enabled=gather and bool(parameters)):
            values = {name: tensor.detach() for name, tensor in tensors.items()}
            yield from as_stored(model, values).items()


def export(
    model: Any,
    gather: bool,
    folder: Path | None,
    base: Path,
    tokenizer: Any,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write the model to `folder` and return the memory used, in bytes.

    All ranks must call this; those with `folder` None only take part in gathering. Weights are
    stored under the family's names, in files of at most `shard_bytes` (a larger tensor gets a file
    of its own), in `dtype` except those that `base` stores in float32 among smaller numbers.
    The generation config is copied from `base`.
    """
    groups = stored_groups(model)
    if folder is None:
        for _ in gathered(model, groups, gather):
            pass
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    precise = kept_in_float32(base)
    peak = write_weights(folder, model, groups, gather, dtype, shard_bytes, precise)
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    copy_code(base, folder)
    generation = base / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)
    tokenizer.save_pretrained(folder)
    return peak


def copy_code(base: Path, folder: Path) -> None:
    """Copies the Python files of a base model whose class they define."""
    if "auto_map" in model_config(base):
        for file in sorted(base.rglob("*.py")):
            copy = folder / file.relative_to(base)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def kept_in_float32(base: Path) -> frozenset[str]:
    """Returns the tensors that a folder stores in float32 among others of fewer bits.

    For example, routers. With all tensors in float32 there are none.
    """
    dtypes = {name: tensor.dtype for name, tensor in model_folder.stored_tensors(base).items()}
    if not {"BF16", "F16"} & set(dtypes.values()):
        return frozenset()
    return frozenset(name for name, dtype in dtypes.items() if dtype == "F32")


def write_weights(
    folder: Path,
    model: nn.Module,
    groups: list[StoredGroup],
    gather: bool,
    dtype: torch.dtype,
    shard_bytes: int,
    precise: Collection[str] = (),
) -> int:
    """Write safetensors files in the Hugging Face layout, with an index if there are several.

    `precise` names the tensors stored in float32. Returns the memory used, in bytes.
    """
    memory = PeakMemory()
    shapes = {
        name: (
            tuple(tensor.shape),
            _stored_dtype(tensor, torch.float32 if name in precise else dtype),
        )
        for group in groups
        for name, tensor in group.stored.items()
    }
    largest = max(_num_bytes(*shape) for shape in shapes.values())
    buffer = torch.empty(min(_BUFFER_BYTES, largest + 7 & ~7), dtype=torch.uint8)
    shards = _shards({name: _num_bytes(*shape) for name, shape in shapes.items()}, shard_bytes)
    files = _file_names(len(shards))
    values = gathered(model, groups, gather)
    for file, names in zip(files, shards, strict=True):
        with (folder / file).open("wb") as out:
            out.write(_header({name: shapes[name] for name in names}))
            for expected in names:
                activity.advance()
                name, tensor = next(values)
                assert name == expected
                for chunk in _bytes_of(tensor, shapes[name][1], buffer):
                    memory.update()
                    out.write(chunk)
    assert next(values, None) is None  # also releases the last gathered parameter
    if len(shards) > 1:
        weight_map = {
            name: file for file, names in zip(files, shards, strict=True) for name in names
        }
        total = sum(_num_bytes(*shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=1), encoding="utf-8")
    return memory.bytes


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _stored_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _num_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _shards(sizes: dict[str, int], max_bytes: int) -> list[list[str]]:
    """Returns the names in order, in a new shard whenever one would exceed `max_bytes`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _header(shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> bytes:
    """Returns a safetensors header: its length in 8 bytes, then JSON, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (shape, dtype) in shapes.items():
        end = start + _num_bytes(shape, dtype)
        entries[name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor, dtype: torch.dtype, buffer: Tensor) -> Iterator[Any]:
    """Yields the bytes of a tensor in pieces, converted to `dtype` in `buffer` on the host.

    Each piece is valid until the next iteration.
    """
    host = buffer.view(dtype)
    for piece in tensor.reshape(-1).split(len(host)):
        yield host[: len(piece)].copy_(piece).view(torch.uint8).numpy().data


class PeakMemory:
    """The largest increase of this process's memory, in `bytes`; 0 without Linux's counter.

    Does not count memory-mapped files, which the system caches and drops as it likes.
    """

    def __init__(self) -> None:
        self._initial, self.bytes = host.own(), 0

    def update(self) -> None:
        self.bytes = max(self.bytes, int(host.own() - self._initial))
