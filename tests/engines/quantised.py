"""Quantises the weights of a model folder for tests."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def quantised_to_fp8(folder: Path) -> dict[str, torch.Tensor]:
    """Stores the matrices as fp8 in blocks of 32 x 32; returns the values that they stand for."""
    size, plain, stored = 32, {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        plain[name] = stored[name] = tensor
        if tensor.dim() == 2 and not any(part in name for part in ("embed", "lm_head", ".gate.")):
            rows, columns = (n // size for n in tensor.shape)
            blocks = tensor.view(rows, size, columns, size)
            scales = blocks.abs().amax((1, 3)) / 448
            values = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            stored[name], stored[f"{name}_scale_inv"] = values.view(tensor.shape), scales
            plain[name] = (values.float() * scales[:, None, :, None]).view(tensor.shape)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    set_quantisation(folder, quant_method="fp8", weight_block_size=[size, size], fmt="e4m3")
    return plain


def set_quantisation(folder: Path, **settings: Any) -> None:
    fields = json.loads((folder / "config.json").read_text())
    fields["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(fields))
