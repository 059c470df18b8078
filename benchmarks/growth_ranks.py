"""One rank of a world of bench_growth.py: runs all sweeps in one process group; rank 0 writes.

    python -m benchmarks.growth_ranks OUT --repeats 3 [--quick]
        (RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set)

A single rank sweeps set size, example length, its spread and the vocabulary; every world its ZeRO
stages, with one thread per rank. Each point has the seconds of `repeats` steps (set size: whole
epochs) after a warm-up step, and the first step's loss.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist

from benchmarks.random_llama import build, joined, random_set, settings
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import deepspeed as engines

BATCH = 16
LENGTHS = [64, 128, 256, 512, 1024]
SPREADS = [0, 80, 160, 240]
VOCABULARIES = [1024, 4096, 16_384, 65_536]
SET_SIZES = [16, 32, 64, 128]
Point = dict[str, Any]


def llama(vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }


def point(
    case: str,
    at: dict[str, float],
    tokens: TokenizedSet,
    repeats: int,
    stage: int = 2,
    vocabulary: int = 4096,
) -> Point:
    """Returns the slowest rank's seconds per step, or per epoch for the case `set size`."""
    device = torch.device("cpu")
    config = settings("float32", BATCH, 4096, stage, kernels="pytorch", max_length=2048)
    engine, steps = build(llama(vocabulary), config, device, tokens)
    first = engines.run_step(engine, steps[0], tokens, 0.0).loss
    dist.all_reduce(first)
    seconds = []
    for _ in range(repeats):
        dist.barrier()
        started = time.perf_counter()
        for step in steps:
            engines.run_step(engine, step, tokens, 0.0)
        dist.barrier()
        seconds.append(time.perf_counter() - started)
    engine.release()
    return {
        "case": case,
        "at": at,
        "seconds": seconds,
        "loss": first.item(),
        "tokens": int(tokens.lengths.sum()),
    }


def sweeps(repeats: int, quick: bool) -> list[Point]:
    """Returns the sweeps over the workload's own sizes, measured by a single rank."""
    few = slice(0, 2 if quick else None)
    found = [
        point("set size", {"examples": n}, random_set(n, 4096), repeats) for n in SET_SIZES[few]
    ]
    for mean in LENGTHS[few]:
        found.append(
            point(
                "example length",
                {"mean tokens": mean},
                random_set(BATCH, 4096, 0, mean, 0, 2048),
                repeats,
            )
        )
    for spread in SPREADS[few]:
        tokens = random_set(BATCH, 4096, 0, 320, spread, 1024)
        found.append(
            point("spread of lengths, mean 320", {"standard deviation": spread}, tokens, repeats)
        )
    for size in VOCABULARIES[few]:
        found.append(
            point(
                "vocabulary",
                {"tokens known": size},
                random_set(BATCH, size),
                repeats,
                vocabulary=size,
            )
        )
    return found


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--repeats", default=3, show_default=True)
@click.option("--quick", is_flag=True)
def main(out: Path, repeats: int, quick: bool) -> None:
    ranks, _ = joined()
    torch.set_num_threads(1)
    alone = ranks.world_size == 1
    stages = (2,) if quick else (0, 1, 2, 3)
    tokens = random_set(BATCH, 4096)
    found = [
        point(f"ZeRO-{stage}", {"ranks": ranks.world_size}, tokens, repeats, stage)
        for stage in stages
    ]
    found += sweeps(repeats, quick) if alone else []
    if ranks.rank == 0:
        out.write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()


if __name__ == "__main__":
    main()
