"""Training speed of a small model by one of our paths: whole optimizer steps on one core's CPU.

Input: a model, a training path, and `workload`. Output: loss and CPU seconds of each step; on one
thread, they do not depend on other load. DeepSpeed is left out, because its start-up costs more
than these steps. AdamW, the clipped gradient and the learning rate are those of the peer
(`peers/trl_classes.py`), and so are the examples of each step, so that the losses must agree.
"""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ift_scale_kernels.linear_cross_entropy.reference import linear_cross_entropy

from ift_scale.config import TrainConfig
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.collate import collate
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.model.packed import PackedCausalLM
from ift_scale.train.model.path import TrainingPath
from ift_scale.train.proof.small_fields import SPECIAL_TOKENS, VOCABULARY

BATCH, STEPS, WARM_UP = 32, 4, 1
LEARNING_RATE, CLIP = 5e-4, 1.0
_PREFIX, _SHORTEST, _LONGEST, _ANSWER = 24, 48, 120, 8
"""Tokens: a common system prompt, examples of 48 to 120, and answers of 4 to 8 at their end."""
CONFIG = TrainConfig(
    global_batch_size=BATCH, tokens_per_micro_batch=2048, attention="sdpa", precision="float32"
)
_CPU = torch.device("cpu")


def workload(first_id: int, vocabulary: int, seed: int = 0) -> TokenizedSet:
    """Returns STEPS * BATCH random examples in step order, of ids from `first_id` on."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(_SHORTEST, _LONGEST + 1, STEPS * BATCH)
    offsets = np.cumsum([0, *lengths])
    ids = rng.integers(first_id, vocabulary, offsets[-1]).astype(np.int32)
    supervised = np.zeros(len(ids), dtype=bool)
    prefix = rng.integers(first_id, vocabulary, _PREFIX)
    for start, end in itertools.pairwise(offsets):
        ids[start : start + _PREFIX] = prefix
        supervised[end - rng.integers(4, _ANSWER + 1) : end] = True
    return TokenizedSet(ids, supervised, offsets, np.ones(len(lengths)), num_truncated=0)


def write(tokens: TokenizedSet, path: Path) -> None:
    """Writes the examples for the peer, one JSON object per line; label -100 is not learned."""
    rows = []
    for number, (start, end) in enumerate(itertools.pairwise(tokens.offsets)):
        ids = tokens.ids[start:end].tolist()
        learned = tokens.supervised[start:end]
        labels = [token if learn else -100 for token, learn in zip(ids, learned, strict=True)]
        rows.append({"step": number // BATCH, "input_ids": ids, "labels": labels})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train(model: Any, path: TrainingPath, tokens: TokenizedSet) -> tuple[list[float], list[float]]:
    """Returns (losses, CPU seconds) of each optimizer step; the model is trained in place."""
    packed = PackedCausalLM(model.train(), CONFIG, _CPU, linear_cross_entropy, path)
    optimizer = torch.optim.AdamW(packed.parameters(), LEARNING_RATE, weight_decay=0.0)
    losses, seconds = [], []
    for step in range(STEPS):
        started = time.process_time()
        losses.append(
            _step(packed, optimizer, list(range(step * BATCH, (step + 1) * BATCH)), tokens)
        )
        seconds.append(time.process_time() - started)
    return losses, seconds


def _step(
    packed: PackedCausalLM, optimizer: Any, examples: list[int], tokens: TokenizedSet
) -> float:
    scales = packing.loss_scales(examples, tokens.supervised_counts, tokens.weights, "token")
    micro_batches = packing.assign_to_ranks(
        examples,
        tokens.computed_lengths,
        1,
        CONFIG.tokens_per_micro_batch,
        packed.model.config.hidden_size,
        packed.path.layout,
    )
    total = 0.0
    for (chosen,) in micro_batches:
        batch = collate(chosen, tokens, scales, _CPU, packed.shares_prefix, packed.whole)
        loss, _ = packed(batch)
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(packed.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return total


def rate(seconds: list[float], tokens: TokenizedSet) -> list[float]:
    """Returns tokens per CPU second of each step after the warm-up."""
    per_step = tokens.lengths.reshape(STEPS, BATCH).sum(1)
    return [
        float(count / spent)
        for count, spent in zip(per_step[WARM_UP:], seconds[WARM_UP:], strict=True)
    ]


def prepare(work: Path) -> TokenizedSet:
    """Writes the workload to WORK, for us and for the peer, and returns it."""
    tokens = workload(SPECIAL_TOKENS, VOCABULARY)
    dataset.save(tokens, work / "tokens")
    write(tokens, work / "steps.jsonl")
    return tokens


def load(work: Path) -> TokenizedSet:
    return dataset.load(work / "tokens")
