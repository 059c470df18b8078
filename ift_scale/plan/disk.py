"""The bytes that a study leaves on disk, and the maximum while it runs.

What variants share is linked, not copied, and counts once. Checkpoints exist only for the arm in
training: `keep_last` plus the one being written, or a single one if `checkpoint.every` is 0, which
is written when a run is stopped. `validation.keep_best` adds an exported model, and the one being
written. Models of `export_epochs` are linked from the checkpoints' folder to their arms', and count
as these arms' models.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ift_scale.config import Config
from ift_scale.plan.amounts import Amounts, own_arms

# Bytes measured on the demo run (2026-11-25): a question's row in probe.parquet with its views'
# columns, in a shard and merged; a row of an arm's scores; a set's line per token, with its JSON.
_PROBE_ROW, _SCORE_ROW = 2 * 120, 2 * 130
_SET_BYTES_PER_TOKEN = 6
_CACHE_BYTES_PER_TOKEN = 5
"""A token's id and whether it is supervised (train/data)."""


@dataclass(frozen=True)
class Disk:
    """Bytes: exported `models`, the maximum of `checkpoints`, `sets` with token caches, and
    `scores` with their shards."""

    models: float
    checkpoints: float
    sets: float
    scores: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.models + self.checkpoints + self.sets + self.scores


def checkpoint_bytes(parameters: int, config: Config, element: int) -> float:
    """Returns the bytes of one checkpoint: the weights, and ZeRO's float32 master weights and two
    moments (stage 0: only the moments)."""
    return parameters * (element + (8 if config.train.zero_stage == 0 else 12))


def disk_of(study: Sequence[Amounts], element: int, example_tokens: float) -> Disk:
    """Returns the disk space of a study. `element`: bytes of an exported weight."""
    trained, evaluated = own_arms(study, "train"), own_arms(study, "evaluate")
    models = sum(
        len(arms) * one.parameters * element for one, arms in zip(study, trained, strict=True)
    )
    checkpoints, sets, scores = 0.0, 0.0, 0.0
    for one, arms, to_evaluate in zip(study, trained, evaluated, strict=True):
        kept = one.config.train.checkpoint
        count = kept.keep_last + 1 if kept.every else 1
        best = 2 * one.parameters * element if one.config.train.validation.keep_best else 0
        checkpoints = max(
            checkpoints, count * checkpoint_bytes(one.parameters, one.config, element) + best
        )
        examples = sum(work.examples for work in arms) / one.config.train.epochs
        sets += examples * example_tokens * (_SET_BYTES_PER_TOKEN + _CACHE_BYTES_PER_TOKEN)
        scores += sum(work.asked["evaluate"] for work in to_evaluate) * _SCORE_ROW
    probes = {one.probe_key: one.num_probed * one.prompts.views for one in study}
    return Disk(models, checkpoints, sets, scores + sum(probes.values()) * _PROBE_ROW)


def free_bytes(folder: Path) -> float:
    """Returns the free bytes of the file system of `folder`, which may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)
