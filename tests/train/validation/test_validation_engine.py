"""Validation on DeepSpeed ranks: exact, without effect on the weights, and the best ones kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ift_scale.config import TrainConfig
from ift_scale.io.manifests import read_manifest
from ift_scale.records import Arm
from ift_scale.train import job
from tests.train import group
from tests.train.validation import examples

pytestmark = pytest.mark.engine

STAGES = (0, 1, 2, 3)
HELD_OUT = (3, 8, 9, 14, 21)
NUM_TRAINED, NUM_STEPS = 20, 6


class Launch:
    """Arms of one launch. Those with validation train on the same examples as those without."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self.model = folder, model
        self.parts: list[dict[str, Any]] = []
        rows = [examples.row(i) for i in range(NUM_TRAINED + len(HELD_OUT))]
        # Words that are not all in the trained examples: the loss falls, then rises.
        for i in HELD_OUT:
            rows[i] = examples.row(i, ["mint", "oak", "garlic"])
        rest = [row for i, row in enumerate(rows) if i not in HELD_OUT]
        self.whole = examples.tokens(examples.write(folder / "whole.jsonl", rows), model)
        self.rest = examples.tokens(examples.write(folder / "rest.jsonl", rest), model)
        np.save(folder / "held.npy", np.array(HELD_OUT))

    def train(self, run: str, stage: int, stop_after: int | None = None, **validation: Any) -> Path:
        """Plan an arm into FOLDER/RUN/d; without settings, one without validation."""
        tokens, held_out = (self.whole, self.folder / "held.npy") if validation else (self.rest, "")
        arm = job.ArmJob(
            arm=Arm(domain="d", setting="harmonious", seed=3),
            source=str(tokens.with_suffix(".jsonl")),
            tokens=str(tokens),
            folder=str(self.folder / run / "d"),
            key="key",
            inputs={},
            validation=job.ValidationJob(
                tokens=str(tokens), held_out=str(held_out), every=1, digest="d"
            )
            if validation
            else None,
        )
        settings = {
            "epochs": 2,
            "global_batch_size": 8,
            "learning_rate": 2e-3,
            "max_length": 128,
            "tokens_per_micro_batch": 128,
            "offload": "none",
            "activation_checkpointing": "none",
            "zero_stage": stage,
            "validation": {"share": 0.2} | validation if validation else {},
        }
        work = job.Job(
            model_path=str(self.model),
            hidden_size=96,
            template="vicuna",
            logs=str(self.folder),
            train=TrainConfig.model_validate(settings),
            arms=[arm],
        )
        path = self.folder / f"{run}-{len(self.parts)}.json"
        job.write(work, path)
        self.parts.append({"job": str(path), "stop_after": stop_after, "error": None})
        return Path(arm.folder)

    def launch(self, num_ranks: int) -> None:
        path = self.folder / "plan.json"
        path.write_text(json.dumps(self.parts))
        self.parts = []
        ranks = "tests.train.engine.resume_ranks"
        group.run(ranks, path, world_size=num_ranks, logs=self.folder)


def _rows(folder: Path, file: str = "validation.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / file).read_text().splitlines()]


def _losses(folder: Path) -> list[float]:
    return [row["validation_loss"] for row in _rows(folder)]


def _same_weights(a: Path, b: Path) -> bool:
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def _counts(folder: Path) -> dict[str, float]:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest.counts


def test_measuring_changes_nothing_and_the_best_weights_are_kept(
    tmp_path: Path, world_model: Path
) -> None:
    launch = Launch(tmp_path, world_model)
    plain, measured, kept, interrupted = {}, {}, {}, {}
    for stage in STAGES:
        plain[stage] = launch.train(f"plain{stage}", stage)
        measured[stage] = launch.train(f"measured{stage}", stage, every=1)
        kept[stage] = launch.train(f"kept{stage}", stage, keep_best=True)
        interrupted[stage] = launch.train(f"stopped{stage}", stage, NUM_STEPS - 1, keep_best=True)
    launch.launch(2)

    checkpoints = {stage: tmp_path / f"stopped{stage}" / ".checkpoints" / "d" for stage in STAGES}
    saved = {}
    for stage in STAGES:
        assert _same_weights(plain[stage], measured[stage])
        metrics = [_rows(folder, "metrics.jsonl") for folder in (plain[stage], measured[stage])]
        assert [r["loss"] for r in metrics[0]] == [r["loss"] for r in metrics[1]]
        losses = _losses(measured[stage])
        assert [row["step"] for row in _rows(measured[stage])] == list(range(NUM_STEPS + 1))
        assert [row["validation_loss"] for row in metrics[1]] == losses[1:]
        assert losses == pytest.approx(_losses(measured[0]), rel=1e-5)
        best = 1 + int(np.argmin(losses[1:]))
        assert 1 < best < NUM_STEPS - 1, losses
        assert _losses(kept[stage]) == losses and _counts(kept[stage])["best_step"] == best
        assert _counts(kept[stage])["examples"] == NUM_TRAINED
        assert not _same_weights(kept[stage], plain[stage])
        assert not (tmp_path / f"kept{stage}" / ".checkpoints" / "d").exists()
        assert (checkpoints[stage] / f"best-{best}").is_dir()
        # As after a kill before any checkpoint: only the best weights remain.
        if stage % 2:
            (checkpoints[stage] / f"step-{NUM_STEPS - 1}").rename(tmp_path / f"gone{stage}")
        weights = checkpoints[stage] / f"best-{best}" / "model" / "model.safetensors"
        saved[stage] = weights.stat().st_ino
        launch.train(f"stopped{stage}", stage, keep_best=True)
    launch.launch(2)
    for stage in STAGES:
        folder = interrupted[stage]
        assert _losses(folder) == pytest.approx(_losses(kept[stage]), rel=1e-6)
        assert _same_weights(folder, kept[stage])
        # Linked, not written again.
        assert (folder / "model" / "model.safetensors").stat().st_ino == saved[stage]

    # The published weights have the best loss: it is the first one of an arm that starts there.
    (tmp_path / "again").mkdir()
    restarted = Launch(tmp_path / "again", kept[3] / "model")
    one = restarted.train("one", 0, every=1)
    restarted.launch(1)
    assert _losses(one)[0] == pytest.approx(min(_losses(kept[3])[1:]), rel=1e-5)


def test_one_rank_and_two_measure_the_same_and_stop_at_the_same_step(
    tmp_path: Path, world_model: Path
) -> None:
    found = []
    for num_ranks in (1, 2):
        folder = tmp_path / str(num_ranks)
        folder.mkdir()
        launch = Launch(folder, world_model)
        arm = launch.train("stops", 2, early_stopping={"patience": 1}, keep_best=True)
        launch.launch(num_ranks)
        found.append((_losses(arm), _counts(arm)))
    (one, counts), (two, others) = found
    assert one == pytest.approx(two, rel=1e-5)
    assert one[0] == pytest.approx(two[0], rel=1e-6)  # the same weights
    assert one[-1] >= min(one) and counts["steps"] == len(one) - 1 < NUM_STEPS
    assert counts["best_step"] == others["best_step"] == len(one) - 2
    assert counts["stopped_early"] == others["stopped_early"] == 1
