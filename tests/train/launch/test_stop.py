"""Training that is stopped, killed, or out of disk space reports it soon, and can be resumed."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ift_scale.config import Config
from ift_scale.config.file import from_dict
from ift_scale.errors import ArtifactError, EnvironmentProblem, Stopped
from ift_scale.io.manifests import is_done, read_manifest
from ift_scale.io.progress import Bar
from ift_scale.records import Arm
from ift_scale.stage import Task
from ift_scale.train import run as train
from ift_scale.train.engine import checkpoint_manifest
from ift_scale.train.launch import launcher
from tests.waiting import wait_for

pytestmark = pytest.mark.engine

ARM = Arm(domain="d", setting="harmonious", seed=3)
NUM_STEPS = 60


def _config(folder: Path, **changes: Any) -> Config:
    settings = {
        "epochs": NUM_STEPS // 3,  # 20 examples, 8 per step
        "global_batch_size": 8,
        "learning_rate": 1e-4,
        "max_length": 128,
        "tokens_per_micro_batch": 2048,
        "launcher": "direct",
        "num_ranks": 2,
        "log_every": 1,
    }
    return from_dict({"output_dir": str(folder), "train": settings | changes})


class Run:
    """Trainings of one arm into one folder, each the same command as the last."""

    def __init__(self, folder: Path, model: Path, **changes: Any):
        self.folder, self.model, self.config = folder, model, _config(folder, **changes)
        self.train, self.logs = folder / "train", folder / "logs"
        self.logs.mkdir(parents=True)
        self.set = folder / "set.jsonl"
        rows = []
        for i in range(20):
            words = "willow ginger clover honey mint".split()[: 1 + i % 5]
            turns = [
                {"role": "user", "content": f"Say {i}."},
                {"role": "assistant", "content": " ".join(words)},
            ]
            rows.append({"messages": turns, "meta": {"setting": "general", "wording": "general"}})
        self.set.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def __call__(self, key: str = "key", **inputs: str) -> Path:
        train.train(
            self.config,
            self.train,
            self.model,
            [(Task("train", self.train / ARM.name, key, inputs, ARM), ARM, self.set)],
            self.logs,
            Bar("t", 1, None),
        )
        return self.train / ARM.name

    def steps(self) -> list[int]:
        events = launcher.read(self.logs / "train-events.jsonl")
        return [event["step"] for event in events if event["event"] == "step"]

    def rank(self, number: int) -> int:
        """Process id of a rank of the running launch."""
        mark = f" ift_scale.train.worker {self.train.resolve()}"
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    variables = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if (
                    mark in command
                    and "launcher" not in command
                    and f"RANK={number}".encode() in variables
                ):
                    return int(entry.name)
        raise AssertionError("no such rank runs")

    @contextmanager
    def after(self, step: int, act: Callable[[], None]) -> Iterator[None]:
        """Act, from another thread, once the running launch reports `step`; `acted` is the time."""
        self.acted = 0.0

        def wait() -> None:
            wait_for(lambda: step in self.steps(), pause=0.005)
            self.acted = time.monotonic()
            act()

        (self.logs / "train-events.jsonl").unlink(missing_ok=True)
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        yield
        thread.join()

    def checkpoints(self) -> list[int]:
        return [
            found.progress.step
            for _, found in checkpoint_manifest.complete(
                checkpoint_manifest.folder_of(self.train / ARM.name)
            )
        ]


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Handles signals to this process as the command line does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("by a signal")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_killed_stopped_and_stopped_again_it_trains_the_same(
    tmp_path: Path, world_model: Path
) -> None:
    expected = Run(tmp_path / "whole", world_model)()
    run = Run(tmp_path / "broken", world_model, checkpoint={"every": 3})
    with (
        run.after(10, lambda: os.kill(run.rank(1), signal.SIGKILL)),
        pytest.raises(EnvironmentProblem, match=r"rank|process"),
    ):
        run()
    assert time.monotonic() - run.acted < 20
    assert run.checkpoints()[-1] >= 9 and len(run.checkpoints()) == 2
    with (
        run.after(20, lambda: os.kill(run.rank(1), signal.SIGUSR1)),
        pytest.raises(Stopped) as caught,
    ):
        run()
    step = run.checkpoints()[-1]
    assert 20 <= step < NUM_STEPS
    assert (
        str(caught.value) == f"stopped training {ARM.name} after step {step}, which is saved."
        " The same command resumes from there."
    )
    assert caught.value.exit_code == 75
    with (
        _stopped_by_signals(),
        run.after(40, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        pytest.raises(Stopped, match="is saved"),
    ):
        run()
    assert run.steps()[0] == step + 1
    with pytest.raises(
        ArtifactError,
        match=r"another base model, .*cannot resume from it.*remove .*\.checkpoints/d-harm",
    ):
        run("another key", model="another")
    folder = run()
    assert run.steps()[0] == run.steps()[-1] - len(run.steps()) + 1 > 40
    weights, same = _weights(expected), _weights(folder)
    assert all(torch.equal(same[name], weights[name]) for name in weights)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    manifest = read_manifest(folder)
    assert (
        manifest is not None
        and manifest.counts["resumed"] == 3
        and manifest.counts["export_peak_bytes"] < 16 << 20
    )
    assert not any(checkpoint_manifest.folder_of(folder).parent.iterdir())


def test_a_killed_rank_ends_the_deepspeed_launcher(tmp_path: Path, world_model: Path) -> None:
    run = Run(tmp_path / "run", world_model, launcher="deepspeed", epochs=1000)
    with (
        run.after(3, lambda: os.kill(run.rank(0), signal.SIGKILL)),
        pytest.raises(EnvironmentProblem, match=r"rank|process"),
    ):
        run()
    assert time.monotonic() - run.acted < 45
    with pytest.raises(AssertionError, match="no such rank"):
        run.rank(1)


@contextmanager
def _disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_fills_while_saving(tmp_path: Path, world_model: Path) -> None:
    """The second 8 MB checkpoint of the world's model does not fit: reported and removed."""
    run = Run(tmp_path / "run", world_model, checkpoint={"every": 5, "keep_last": 1})
    with _disk(run.train, "13m"):
        with pytest.raises(EnvironmentProblem, match="step-10: the disk is full") as caught:
            run()
        assert caught.value.exit_code == 3
        assert run.checkpoints() == [5]
        assert not [path for path in run.train.rglob("*") if "incomplete" in path.name]
        subprocess.run(["mount", "-o", "remount,size=60m", str(run.train)], check=True)
        folder = run()
        assert run.steps()[0] == 6
        assert is_done(folder, "key")
