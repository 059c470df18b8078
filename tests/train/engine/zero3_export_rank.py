"""Exports a model partitioned by ZeRO-3: python -m tests.train.engine.zero3_export_rank BASE OUT"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers.integrations import HfDeepSpeedConfig

from ift_scale.config import TrainConfig
from ift_scale.train.engine.export import export
from ift_scale.train.model import packed
from tests.train.group import joined


def main(base: Path, out: Path) -> None:
    settings = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
    held = HfDeepSpeedConfig(settings)
    kind, config = packed.class_and_config(base)
    options = TrainConfig(activation_checkpointing="none")
    with joined() as (ranks, _):
        weights = packed.read_weights(base)
        model = packed.build(kind, config, weights, options, torch.float32, None)
        partitioned = sum(parameter.numel() == 0 for parameter in model.parameters())
        assert held and partitioned > 10, partitioned
        tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
        folder = out if ranks.is_rank_zero else None
        export(model, True, folder, base, tokenizer, torch.float32, 1 << 16)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
