"""One rank of test_buffers.py: losses of a long example in bfloat16 with ZeRO-1 to 3, and buffers.

    python -m tests.train.model.buffer_ranks MODEL TOKENS OUT

OUT gets, by stage, the cross-entropy of
every supervised token and the tensors that the model computes itself: in a new engine, after a
step, and in a new engine that loaded the checkpoint of that step.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ift_scale.train.data import dataset
from ift_scale.train.data.collate import collate
from ift_scale.train.engine import deepspeed
from ift_scale.train.model import buffers
from ift_scale.train.model.packed import read_weights
from tests.train.exact_ranks import gather_everything, settings
from tests.train.group import joined

STAGES = (1, 2, 3)


def run(
    model: Path,
    tokens: dataset.TokenizedSet,
    stage: int,
    checkpoint: Path,
    ranks: Any,
    device: torch.device,
) -> dict[str, Any]:
    config = settings(stage, True, precision="bfloat16", learning_rate=1e-5)
    weights = read_weights(model)
    built = deepspeed.build(model, weights, config, device, ranks, 1)
    _, losses = built.deepspeed(collate([0], tokens, np.ones(1), device))
    computed = [dict(buffers._computed_of(built.packed.model))]
    deepspeed.run_step(built, [[[0]] * ranks.world_size], tokens, 1e-5)
    computed.append(dict(buffers._computed_of(built.packed.model)))
    built.deepspeed.save_checkpoint(str(checkpoint), tag="state", save_latest=False)
    built.release()
    built = deepspeed.build(model, weights, config, device, ranks, 1)
    built.deepspeed.load_checkpoint(str(checkpoint), tag="state")
    computed.append(dict(buffers._computed_of(built.packed.model)))
    built.release()
    return {"losses": losses.detach(), "computed": computed}


def main(model: Path, token_file: Path, out: Path) -> None:
    gather_everything()
    tokens = dataset.load(token_file)
    with joined() as (ranks, device):
        found = {
            stage: run(model, tokens, stage, out.parent / f"zero{stage}", ranks, device)
            for stage in STAGES
        }
        if ranks.is_rank_zero:
            torch.save(found, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
