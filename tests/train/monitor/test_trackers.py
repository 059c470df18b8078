"""Trackers: files of each library are read back; failures are reported and do not end training."""

import importlib.util
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from ift_scale.errors import EnvironmentProblem
from ift_scale.train.monitor import trackers
from ift_scale.train.monitor.trackers import Trackers

CONFIG = {"model": "base", "train": {"learning_rate": 1e-3, "checkpoint": {"every": 0}}}
ROWS: list[dict[str, Any]] = [
    {"step": 1, "loss": 2.5, "mfu": None, "applied": True},
    {"step": 2, "loss": 2.25, "mfu": None, "applied": False},
]


def _run(name: str, folder: Path) -> None:
    notes: list[str] = []
    running = Trackers([name], folder, notes.append)
    running.start("math-harmonious-seed0", CONFIG)
    for row in ROWS:
        running.log(row["step"], row)
    running.close()
    assert notes == []


def test_tensorboard_files_contain_the_rows(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _run("tensorboard", tmp_path)
    (folder,) = (tmp_path / "tensorboard" / "math-harmonious-seed0").iterdir()
    read = EventAccumulator(str(folder))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {
        "train/loss",
        "train/applied",
    }  # nothing for unknown values
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [
        (1, 2.5),
        (2, 2.25),
    ]
    assert [event.value for event in read.Scalars("train/applied")] == [1, 0]
    (text,) = read.Tensors("settings/text_summary")
    assert b'"learning_rate": 0.001' in text.tensor_proto.string_val[0]


def test_mlflow_files_contain_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip(
        "mlflow", reason="mlflow and its needs are over 100 MB, and not in the lock"
    )
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no database")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _run("mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'ift-scale'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "math-harmonious-seed0" and run.info.status == "FINISHED"
    assert run.data.params == {
        "model": "base",
        "train.learning_rate": "0.001",
        "train.checkpoint.every": "0",
    }
    assert [
        (m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")
    ] == [(1, 2.5), (2, 2.25)]


def test_wandb_offline_writes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is 60 MB, and not in the lock")
    monkeypatch.setenv("WANDB_MODE", "offline")
    _run("wandb", tmp_path)
    wandb.teardown()  # a process of wandb's writes the file
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"train/loss" in file.read_bytes()


def test_a_missing_package_is_reported_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder left by wandb's runs in the working directory is not the package."""
    found = {
        "mlflow": None,
        "wandb": ModuleSpec("wandb", None),
        "tensorboard": ModuleSpec("tensorboard", None, origin="a file"),
    }
    monkeypatch.setattr(importlib.util, "find_spec", found.__getitem__)
    with pytest.raises(
        EnvironmentProblem, match="wandb, mlflow cannot be imported; pip install wandb mlflow, or"
    ):
        trackers.check(["wandb", "tensorboard", "mlflow"])
    trackers.check(["tensorboard"])


class _Failing:
    def __init__(self, when: str):
        self.when, self.calls = when, 0

    def _do(self, what: str) -> None:
        self.calls += 1
        if what == self.when:
            raise ConnectionError("no route to the server")

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        self._do("start")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._do("log")

    def close(self) -> None:
        self._do("close")


@pytest.mark.parametrize(("when", "calls"), [("start", 1), ("log", 2), ("close", 4)])
def test_a_failing_tracker_is_reported_once_and_disabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, calls: int
) -> None:
    failing, sound = _Failing(when), _Failing("never")
    monkeypatch.setattr(
        trackers, "KINDS", {"wandb": lambda logs: failing, "mlflow": lambda logs: sound}
    )
    notes: list[str] = []
    running = Trackers(["wandb", "mlflow"], tmp_path, notes.append)
    running.start("arm", CONFIG)
    for row in ROWS:
        running.log(row["step"], row)
    running.close()
    assert notes == [
        "wandb failed and is disabled for the rest of this arm:"
        " ConnectionError: no route to the server"
    ]
    assert failing.calls == calls and sound.calls == 4
