"""Loads a model folder's weights into its class, quantised ones as plain numbers."""

from pathlib import Path
from typing import Any

import torch
from transformers import FineGrainedFP8Config, Mxfp4Config

from ift_scale.engines.model_folder import DEQUANTISED
from ift_scale.models.config_file import quantisation


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
