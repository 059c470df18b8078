"""Export of the trained weights as a Hugging Face folder, one parameter gathered at a time under ZeRO-3."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

_SHARD_BYTES = 5 << 30


def gathered_parameters(model: nn.Module, gather: bool) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor on the CPU) of each parameter and stored buffer, tied ones once. Every rank must iterate.

    `gather`: from the parts that ZeRO-3 leaves each rank.
    """
    import deepspeed

    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=gather):
            tensor = parameter.detach().cpu().clone()
        yield name, tensor
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in stored:
            yield name, buffer.detach().cpu().clone()


def export(model: Any, gather: bool, folder: Path | None, base: Path, tokenizer: Any, dtype: torch.dtype) -> None:
    """Write `folder` on the rank that names one; all others take part in gathering only. Weights in `dtype`, in shards of 5 GiB;
    generation settings as in the `base` folder."""
    shards: list[dict[str, Tensor]] = [{}]
    names: list[list[str]] = []
    size = 0

    def flush() -> None:
        assert folder is not None
        save_file(shards[0], folder / f"part-{len(names)}.safetensors", metadata={"format": "pt"})
        names.append(list(shards[0]))
        shards[0] = {}

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in gathered_parameters(model, gather):
        if folder is None:
            continue
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        bytes_ = tensor.numel() * tensor.element_size()
        if shards[0] and size + bytes_ > _SHARD_BYTES:
            flush()
            size = 0
        shards[0][name] = tensor
        size += bytes_
    if folder is not None:
        flush()
        _name_shards(folder, names)
        _write_config(model, folder, base, tokenizer, dtype)


def _name_shards(folder: Path, names: list[list[str]]) -> None:
    """Give the parts the names that the Hugging Face layout wants, with an index where there are several."""
    if len(names) == 1:
        (folder / "part-0.safetensors").replace(folder / "model.safetensors")
        return
    weight_map = {}
    for number, shard in enumerate(names):
        file = f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        (folder / f"part-{number}.safetensors").replace(folder / file)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum((folder / file).stat().st_size for file in set(weight_map.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _write_config(model: Any, folder: Path, base: Path, tokenizer: Any, dtype: torch.dtype) -> None:
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    generation = base / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)
    tokenizer.save_pretrained(folder)
