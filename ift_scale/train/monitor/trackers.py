"""Experiment trackers, set by `train.trackers`: each logs the rows of metrics.jsonl.

Only rank 0 has trackers. `check` reports missing packages before the ranks start. A tracker that
fails later is reported once and disabled, because metrics.jsonl has every row and an arm must not
fail with its tracker.
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ift_scale.errors import EnvironmentProblem, printable

PROJECT = "ift-scale"


class Tracker(Protocol):
    def start(self, name: str, config: Mapping[str, Any]) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in LOGS/tensorboard/ARM/TIME, one folder per start of the arm."""

    def __init__(self, logs: Path):
        self._folder = logs / "tensorboard"

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder / name / time.strftime("%Y%m%d-%H%M%S")))
        self._writer.add_text("settings", f"```\n{json.dumps(config, indent=1)}\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Configured by wandb's own variables, such as WANDB_MODE; local files in LOGS/wandb."""

    def __init__(self, logs: Path):
        self._folder = logs

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(
            project=project,
            name=name,
            config=dict(config),
            dir=str(self._folder),
            reinit="finish_previous",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"train/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """Logs to MLFLOW_TRACKING_URI, else to LOGS/mlflow.db, which mlflow-skinny does not support."""

    def __init__(self, logs: Path):
        self._file = logs / "mlflow.db"

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{self._file.resolve()}")
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        mlflow.start_run(run_name=name)
        mlflow.log_params(_flat(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        import mlflow

        mlflow.log_metrics({f"train/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        import mlflow

        mlflow.end_run()


KINDS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
}


def check(names: Sequence[str]) -> None:
    """Raises EnvironmentProblem for trackers that are not installed.

    A folder named wandb, which its runs create, is not the package.
    """
    specs = {name: importlib.util.find_spec(name) for name in names}
    missing = [name for name, spec in specs.items() if spec is None or spec.origin is None]
    if missing:
        command = f"pip install {' '.join(missing)}"
        raise EnvironmentProblem(
            f"train.trackers: {', '.join(missing)} cannot be imported; {command}, or remove it"
        )


class Trackers:
    """An arm's trackers. `note` is called with one line when a tracker fails."""

    def __init__(self, names: Sequence[str], logs: Path, note: Callable[[str], None]):
        self._note = note
        self._running: dict[str, Tracker] = {name: KINDS[name](logs) for name in names}

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.start(name, config))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {
            name: float(value)
            for name, value in values.items()
            if value is not None and name != "step"
        }
        self._each(lambda tracker: tracker.log(step, numbers))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._running.items()):
            try:
                do(tracker)
            except Exception as error:  # libraries raise anything
                del self._running[name]
                cause = printable(f"{type(error).__name__}: {error}")
                self._note(f"{name} failed and is disabled for the rest of this arm: {cause}")


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Returns nested settings under dotted names, for MLflow's parameters."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat
