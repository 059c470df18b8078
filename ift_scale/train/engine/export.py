"""Export of the trained weights as a Hugging Face folder: written a parameter at a time, so that no rank ever holds the model.

Under ZeRO-3 each parameter is gathered for itself. The sizes are known beforehand, so every safetensors file's header is written
first and the values follow as they come: rank 0 needs one parameter's memory beyond its training, whatever the shards' size.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from ift_scale.estimate import host

SHARD_BYTES = 5 << 30
_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}
_BUFFER_BYTES = 32 << 20


def stored_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """(name, tensor) of each parameter and stored buffer, tied ones once."""
    kept = model.state_dict().keys()
    return [
        *model.named_parameters(),
        *((name, buffer) for name, buffer in model.named_buffers() if name in kept),
    ]


def gathered(tensors: list[tuple[str, Tensor]], gather: bool) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of each, valid until the next is asked for. Every rank must iterate.

    `gather`: from the parts that ZeRO-3 leaves each rank.
    """
    for name, tensor in tensors:
        with deepspeed.zero.GatheredParameters(
            [tensor], enabled=gather and isinstance(tensor, nn.Parameter)
        ):
            yield name, tensor.detach()


def export(
    model: Any,
    gather: bool,
    folder: Path | None,
    base: Path,
    tokenizer: Any,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write `folder` on the rank that names one, and return the memory it took, in bytes; all others take part in gathering only.

    Weights in `dtype`, in files of `shard_bytes` at most (a larger tensor has one for itself); generation settings as in `base`.
    """
    tensors = stored_tensors(model)
    if folder is None:
        for _ in gathered(tensors, gather):
            pass
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    peak = write_weights(folder, tensors, gather, dtype, shard_bytes)
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    generation = base / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)
    tokenizer.save_pretrained(folder)
    return peak


def write_weights(
    folder: Path,
    tensors: list[tuple[str, Tensor]],
    gather: bool,
    dtype: torch.dtype,
    shard_bytes: int,
) -> int:
    """The tensors as safetensors files in the Hugging Face layout, with an index where there are several.

    Returns the memory that it took, in bytes.
    """
    memory = PeakMemory()
    shapes = {
        name: (tuple(getattr(tensor, "ds_shape", tensor.shape)), _stored_dtype(tensor, dtype))
        for name, tensor in tensors
    }
    buffer = torch.empty(
        min(_BUFFER_BYTES, max(_num_bytes(*shape) for shape in shapes.values()) + 7 & ~7),
        dtype=torch.uint8,
    )
    shards = _shards({name: _num_bytes(*shape) for name, shape in shapes.items()}, shard_bytes)
    files = [
        f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))
    ]
    if len(shards) == 1:
        files = ["model.safetensors"]
    values = gathered(tensors, gather)
    for file, names in zip(files, shards, strict=True):
        with (folder / file).open("wb") as out:
            out.write(_header({name: shapes[name] for name in names}))
            for expected in names:
                name, tensor = next(values)
                assert name == expected
                for chunk in _bytes_of(tensor, shapes[name][1], buffer):
                    memory.look()
                    out.write(chunk)
    assert next(values, None) is None  # also lets the last parameter go
    if len(shards) > 1:
        weight_map = {
            name: file for file, names in zip(files, shards, strict=True) for name in names
        }
        total = sum(_num_bytes(*shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=1), encoding="utf-8"
        )
    return memory.bytes


def _stored_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _num_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _shards(sizes: dict[str, int], most: int) -> list[list[str]]:
    """Names in their order, a new shard where the next would not fit into `most` bytes."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _header(shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> bytes:
    """A safetensors file's beginning: length as 8 bytes, then JSON with each tensor's place, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, (shape, dtype) in shapes.items():
        end = place + _num_bytes(shape, dtype)
        entries[name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor, dtype: torch.dtype, buffer: Tensor) -> Iterator[Any]:
    """The values' bytes in pieces, each valid until the next: all copied to the host and converted in the same few MiB."""
    host = buffer.view(dtype)
    for piece in tensor.reshape(-1).split(len(host)):
        yield host[: len(piece)].copy_(piece).view(torch.uint8).numpy().data


class PeakMemory:
    """`bytes`: most memory that this process was seen to have beyond what it began with; 0 where Linux's counter is missing.

    Its own memory, without files that are mapped: those come and go with the system's cache.
    """

    def __init__(self) -> None:
        self._began, self.bytes = host.own(), 0

    def look(self) -> None:
        self.bytes = max(self.bytes, int(host.own() - self._began))
