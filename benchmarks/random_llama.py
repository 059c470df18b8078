"""Random Llamas, random sets and an engine for drivers that train steps."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ift_scale.config import TrainConfig
from ift_scale.config.train import Precision
from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks
from ift_scale.ranks.rendezvous import Rendezvous
from ift_scale.train import process_group
from ift_scale.train.data import packing
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import deepspeed as engines


def random_set(
    num_examples: int,
    vocab: int,
    seed: int = 0,
    mean: float = 270,
    spread: float = 120,
    most: int = 650,
) -> TokenizedSet:
    """Returns examples of 40 to `most` tokens, normally distributed around `mean`.

    Three quarters of the tokens are supervised; all examples start with the same 36.
    """
    random = np.random.default_rng(seed)
    lengths = np.clip(random.normal(mean, spread, num_examples), 40, most).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.concatenate([np.arange(n) for n in lengths])
    supervised = places >= np.maximum(np.repeat(lengths, lengths) * 0.27, 36)
    ids = random.integers(3, vocab, offsets[-1]).astype(np.int32)
    ids[places < 36] = np.tile(ids[:36], num_examples)
    return TokenizedSet(ids, supervised, offsets, np.ones(num_examples), 0)


def random_weights(
    folder: Path, shape: dict[str, Any], device: torch.device, dtype: torch.dtype, std: float
) -> dict[str, torch.Tensor]:
    """Writes config.json and returns random weights in host memory, drawn on the device."""
    config = LlamaConfig(max_position_embeddings=4096, architectures=["LlamaForCausalLM"], **shape)
    config.save_pretrained(folder)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.manual_seed(0)
    weights = {}
    for name, parameter in empty.named_parameters():
        drawn = torch.empty(parameter.shape, dtype=dtype, device=device)
        weights[name] = (drawn.fill_(1.0) if parameter.dim() == 1 else drawn.normal_(0, std)).cpu()
    return weights


def settings(
    precision: Precision,
    batch: int,
    tokens: int,
    stage: Any = 2,
    checkpointing: Any = "none",
    **more: Any,
) -> TrainConfig:
    return TrainConfig(
        launcher="direct",
        precision=precision,
        zero_stage=stage,
        offload="none",
        activation_checkpointing=checkpointing,
        epochs=1,
        global_batch_size=batch,
        tokens_per_micro_batch=tokens,
        **more,
    )


def build(
    shape: dict[str, Any],
    config: TrainConfig,
    device: torch.device,
    tokens: TokenizedSet,
    std: float = 0.02,
) -> tuple[engines.TrainEngine, list[packing.Step]]:
    """Returns (an engine of this process' group with random weights, the packed steps)."""
    group = environment.from_environment()
    assert group is not None
    dtype = torch.float32 if config.precision == "float32" else torch.bfloat16
    steps = packing.planned_steps(
        tokens.computed_lengths, config, group.world_size, shape["hidden_size"], 0
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = random_weights(Path(folder), shape, device, dtype, std)
        return engines.build(
            Path(folder), weights, config, device, group, max(map(len, steps))
        ), steps


def place_alone() -> None:
    """Sets the environment of a process group of one."""
    own = {"RANK": "0", "LOCAL_RANK": "0"}
    os.environ |= own | environment.local_launch(1, environment.free_port())


def one_rank() -> torch.device:
    """Joins a process group of one."""
    place_alone()
    return joined()[1]


def joined() -> tuple[Ranks, torch.device]:
    """Joins the process group of the environment."""
    found = environment.from_environment()
    assert found is not None
    return found, process_group.join(Rendezvous(found, Path.cwd()))
