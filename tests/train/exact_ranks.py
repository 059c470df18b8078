"""One rank of test_exact.py: ten steps with every ZeRO stage, accumulation and packing.

    python -m tests.train.exact_ranks MODEL TIED TOKENS OUT

TIED is a model with tied embeddings, for
stages 2 and 3. OUT gets, by case, the losses and the whole gradient of the first step before
clipping.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from ift_scale.config import TrainConfig
from ift_scale.estimate import memory
from ift_scale.ranks.environment import Ranks
from ift_scale.train.data import dataset, packing
from ift_scale.train.engine import deepspeed, zero_config
from ift_scale.train.model.packed import read_weights
from tests.train.group import joined

STAGES = (0, 1, 2, 3)
# Name: (packing, maximum number of micro-batches per rank).
SPLITS = {
    "packed-1": (True, 1),
    "packed-2": (True, 2),
    "packed-4": (True, 4),
    "unpacked": (False, 0),
}


def splits_of(world_size: int) -> dict[str, tuple[bool, int]]:
    """All splits on two ranks. One rank and four differ from two by the world size alone."""
    few = {1: ("packed-1",), 4: ("packed-2",)}
    return {name: SPLITS[name] for name in few.get(world_size, tuple(SPLITS))}


# bfloat16 with float32 master weights, as on a GPU; DeepSpeed does not support it at stage 0.
MIXED_STAGES = (1, 2, 3)
STEPS, BATCH, SEED = 10, 16, 0
FUSED: tuple[tuple[int, Any], ...] = (
    *((stage, "none") for stage in STAGES),
    (1, "optimizer"),
    (2, "optimizer"),
    (3, "optimizer"),
    (3, "all"),
)
# With a secondary copy of the weights on each node (hpZ).
HPZ: dict[str, dict[str, Any]] = {
    "hpz": {},
    "hpz-packed-4": {"tokens_per_micro_batch": 64},
    "hpz-full": {"activation_checkpointing": "full"},
    "hpz-offload": {"offload": "optimizer"},
    "mixed-hpz": {"precision": "bfloat16"},
}


def settings(stage: int, packed: bool, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "zero_stage": stage,
        "offload": "none",
        "activation_checkpointing": "none",
        "packing": packed,
        "epochs": 2,
        "global_batch_size": BATCH,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "max_length": 64,
    }
    return TrainConfig(**values | changes)


def token_cap(lengths: Any, world_size: int, num_micro: int) -> int:
    """The smallest cap under which the first step's examples make `num_micro` micro-batches."""
    examples = next(packing.step_examples(len(lengths), BATCH, 1, SEED))
    caps = range(int(lengths.max()), int(lengths.sum()) + 1)
    return next(
        cap
        for cap in caps
        if len(packing.assign_to_ranks(examples, lengths, world_size, cap, 96)) <= num_micro
    )


def gather_everything() -> None:
    """Make ZeRO-3 partition small parameters as well, which all of these are."""
    settings = zero_config.zero_settings

    def without_persistence(
        config: TrainConfig, device: torch.device, world_size: int
    ) -> dict[str, Any]:
        return settings(config, device, world_size) | (
            {"stage3_param_persistence_threshold": 0} if config.zero_stage == 3 else {}
        )

    zero_config.zero_settings = without_persistence


def run(
    model: Path, tokens: dataset.TokenizedSet, config: TrainConfig, ranks: Any, device: torch.device
) -> dict[str, Any]:
    steps = packing.planned_steps(tokens.computed_lengths, config, ranks.world_size, 96, SEED)[
        :STEPS
    ]
    built = deepspeed.build(model, read_weights(model), config, device, ranks, max(map(len, steps)))
    gradient: dict[str, torch.Tensor] = {}
    copies: list[int] = []
    update = deepspeed._update

    def looked_at(one: deepspeed.TrainEngine) -> tuple[Any, bool]:
        if not gradient:
            named = one.packed.model.named_parameters()
            gradient.update(
                {
                    n: (p.grad if config.zero_stage == 0 else safe_get_full_grad(p)).clone()
                    for n, p in named
                }
            )
            copies.append(
                sum(
                    getattr(p, "ds_secondary_tensor", None) is not None
                    for p in one.packed.parameters()
                )
            )
        return update(one)

    deepspeed._update = looked_at
    losses = []
    optimizer = zero_config.optimizer_name(built.deepspeed.optimizer)
    whole_buckets = getattr(built.deepspeed.optimizer, "use_multi_rank_bucket_allreduce", False)
    try:
        for number, step in enumerate(steps):
            result = deepspeed.run_step(
                built, step, tokens, deepspeed.learning_rate(config, number, len(steps))
            )
            dist.all_reduce(result.loss)
            losses.append(result.loss.item())
    finally:
        deepspeed._update = update
        built.release()
    more = {
        "micro_batches": max(map(len, steps)),
        "whole_buckets": whole_buckets,
        "copies": copies[0],
        "optimizer": optimizer,
    }
    return {"losses": losses, "gradient": gradient, **more}


def train(
    ranks: Ranks, device: torch.device, model: Path, tied: Path, token_file: Path
) -> dict[str, Any]:
    tokens = dataset.load(token_file)
    gather_everything()
    found = {}
    splits = splits_of(ranks.world_size)
    for stage, (name, (packed, num_micro)) in itertools.product(STAGES, splits.items()):
        cap = token_cap(tokens.computed_lengths, ranks.world_size, num_micro) if packed else 64
        config = settings(stage, packed, tokens_per_micro_batch=cap)
        found[f"zero{stage}-{name}"] = run(model, tokens, config, ranks, device)
    whole = {"tokens_per_micro_batch": 4096}
    for checkpointing in ("selective", "full"):
        config = settings(3, True, activation_checkpointing=checkpointing, **whole)
        found[f"zero3-{checkpointing}"] = run(model, tokens, config, ranks, device)
    for stage in MIXED_STAGES:
        found[f"mixed{stage}"] = run(
            model, tokens, settings(stage, True, precision="bfloat16", **whole), ranks, device
        )
    for stage in (2, 3):
        found[f"tied{stage}"] = run(tied, tokens, settings(stage, True, **whole), ranks, device)
    for stage, moved in FUSED if ranks.world_size == 2 else ():
        config = settings(stage, True, optimizer="torch_fused", offload=moved, **whole)
        found[f"torch-fused{stage}-{moved}"] = run(model, tokens, config, ranks, device)
        if stage in MIXED_STAGES:  # as on a GPU
            config = config.model_copy(update={"precision": "bfloat16"})
            found[f"mixed-fused{stage}-{moved}"] = run(model, tokens, config, ranks, device)
    if ranks.world_size == 4:  # as two nodes of two
        for name, changes in HPZ.items():
            found[name] = run(
                model, tokens, settings(3, True, hpz=2, **(whole | changes)), ranks, device
            )
    if ranks.world_size > 1:
        memory.SLICED_UP_TO = 1
        found["zero2-whole-buckets"] = run(model, tokens, settings(2, True, **whole), ranks, device)
        found["mixed2-whole-buckets"] = run(
            model, tokens, settings(2, True, precision="bfloat16", **whole), ranks, device
        )
    return found


def main(*arguments: Path) -> None:
    with joined() as (ranks, device):
        found = train(ranks, device, *arguments[:-1])
        if ranks.is_rank_zero:
            torch.save(found, arguments[-1])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
