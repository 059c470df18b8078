"""Exports a model partitioned by ZeRO-3: python -m tests.train.engine.zero3_export_rank BASE OUT

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT must be set.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import torch
from transformers.integrations import HfDeepSpeedConfig

from ift_scale.config import TrainConfig
from ift_scale.train.engine.export import export
from ift_scale.train.model import packed


def main(base: Path, out: Path) -> None:
    deepspeed.init_distributed(dist_backend="gloo")
    settings = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
    held = HfDeepSpeedConfig(settings)
    kind, config = packed.class_and_config(base)
    options = TrainConfig(activation_checkpointing="none")
    weights = packed.read_weights(base)
    model = packed.build(kind, config, weights, options, torch.float32, None)
    partitioned = sum(parameter.numel() == 0 for parameter in model.parameters())
    assert held and partitioned > 10, partitioned
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    folder = out if os.environ["RANK"] == "0" else None
    export(model, True, folder, base, tokenizer, torch.float32, 1 << 16)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
