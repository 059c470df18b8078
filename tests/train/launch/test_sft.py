"""`ift-scale sft`, killed in the middle and resumed, trains the same model on real data."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ift_scale.train.launch import launcher
from tests.waiting import wait_for

pytestmark = pytest.mark.engine

SETTINGS = (
    "construct.sets.0.sources.0.split=train[:64]",
    "train.num_ranks=2",
    "train.global_batch_size=8",
    "train.epochs=4",
    "train.max_length=256",
    "train.too_long=truncate",
    "train.tokens_per_micro_batch=1024",
    "train.learning_rate=0.0005",
    "train.checkpoint.every=4",
)

NUM_STEPS = 64 // 8 * 4


@contextmanager
def _started(data: Path, folder: Path) -> "Iterator[subprocess.Popen[str]]":
    """Starts the command; it ends with the block."""
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    command = ["sft", "world", str(data), "--output", str(folder), *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "ift_scale.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _steps(folder: Path) -> list[int]:
    events = launcher.read(folder / "logs" / "train-events.jsonl")
    return [event["step"] for event in events if event["event"] == "step"]


def test_killed_and_resumed_it_trains_the_same_model(shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "general" / "alpaca_en_demo.jsonl.gz"
    with _started(data, tmp_path / "whole") as whole:
        output, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, output
    assert "format alpaca, 64 examples" in output
    arm = Path("train") / "pooled-data-seed0"
    assert f"model: {(tmp_path / 'whole' / arm / 'model').resolve()}" in output

    broken = tmp_path / "broken"
    with _started(data, broken) as killed:
        wait_for(lambda: NUM_STEPS // 2 in _steps(broken) or killed.poll() is not None)
        assert killed.poll() is None
    assert not (broken / arm).exists()
    with _started(data, broken) as resumed:
        output, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, output
    assert "construct: done already" in output and _steps(broken)[0] > 4

    expected, found = (
        load_file(tmp_path / name / arm / "model" / "model.safetensors")
        for name in ("whole", "broken")
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    losses = [
        json.loads(line)["loss"]
        for line in (broken / arm / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(losses) == NUM_STEPS and losses[-1] < losses[0] - 0.5
