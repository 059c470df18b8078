"""One rank of test_paths.py: trains several steps of each model by its proven path.

    python -m tests.train.path_ranks FOLDER OUT

FOLDER has a folder per model with `tokens`; OUT gets the losses of each step and the stored
buffers after the last one, by model and ZeRO stage. The name of a folder ends with its precision
if it is not float32.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ift_scale.config import TrainConfig
from ift_scale.train.data import dataset, packing
from ift_scale.train.engine import deepspeed
from ift_scale.train.model.packed import read_weights
from ift_scale.train.proof import stored
from ift_scale.train.proof.verdict import Proof
from tests.train.exact_ranks import gather_everything
from tests.train.group import joined

STEPS, BATCH = 3, 8


def stages(model: str) -> tuple[int, ...]:
    """Returns the ZeRO stages under which a model is trained."""
    if model.endswith("bfloat16"):
        return (3,)
    return (0, 3) if model == "own_experts" else (2, 3)


def settings(stage: int, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "zero_stage": stage,
        "offload": "none",
        "activation_checkpointing": "none",
        "epochs": 1,
        "global_batch_size": BATCH,
        "tokens_per_micro_batch": 96,
        "max_length": 64,
        "learning_rate": 1e-3,
    }
    return TrainConfig(**values | changes)


def run(
    folder: Path, proof: Proof, config: TrainConfig, ranks: Any, device: torch.device
) -> dict[str, Any]:
    tokens = dataset.load(folder / "tokens")
    path = proof.fastest(config)
    steps = packing.planned_steps(
        tokens.computed_lengths, config, ranks.world_size, 64, 0, path.layout
    )
    built = deepspeed.build(
        folder, read_weights(folder), config, device, ranks, max(map(len, steps)), path, True
    )
    losses = []
    for number, step in enumerate(steps[:STEPS]):
        rate = deepspeed.learning_rate(config, number, len(steps))
        result = deepspeed.run_step(built, step, tokens, rate)
        dist.all_reduce(result.loss)
        losses.append(result.loss.item())
    model = built.packed.model
    stored_names = model.state_dict().keys()
    kept = {name: b.clone() for name, b in model.named_buffers() if name in stored_names}
    built.release()
    return {
        "path": path.name,
        "losses": losses,
        "micro_batches": max(map(len, steps)),
        "buffers": kept,
    }


def main(folder: Path, out: Path) -> None:
    gather_everything()
    found = {}
    with joined() as (ranks, device):
        for model in sorted(path for path in folder.iterdir() if path.is_dir()):
            proof = stored.compute(model, settings(0).max_length, trust_remote_code=True)
            for stage in stages(model.name):
                config = settings(
                    stage,
                    router_aux_loss=model.name.endswith("balanced"),
                    precision="bfloat16" if model.name.endswith("bfloat16") else "float32",
                )
                found[model.name, stage] = run(model, proof, config, ranks, device)
                print(model.name, stage, found[model.name, stage], flush=True)
        if ranks.is_rank_zero:
            torch.save(found, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
