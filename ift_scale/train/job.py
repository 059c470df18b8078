"""What one warm group of ranks shall train: the arms of a base model, with their token files and output folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ift_scale.config import TrainConfig
from ift_scale.io.files import write_text
from ift_scale.records import Arm
from ift_scale.train.data import dataset, packing


class LiveJob(BaseModel):
    """Ask the first `num_questions` of a file of questions before the first step, after each `every` and after the last."""

    model_config = ConfigDict(extra="forbid")

    questions: str
    num_questions: int
    every: int


class ArmJob(BaseModel):
    """One arm: its set (`source`) and that tokenised, where its artifact goes, and the manifest's key and inputs."""

    model_config = ConfigDict(extra="forbid")

    arm: Arm
    source: str
    tokens: str
    folder: str
    key: str
    inputs: dict[str, str]
    live: LiveJob | None = None


class Job(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model_path: str
    hidden_size: int
    template: str
    logs: str
    """Folder of the run's logs, where the trackers' local files go."""
    train: TrainConfig
    stop_file: str | None = None
    """Made by the supervisor when the ranks shall save and end."""
    arms: list[ArmJob]


def most_tokens(job: Job, world_size: int) -> int:
    """Most tokens that a micro-batch of the job's arms has, about: the cap, or a rank's share of the longest step."""
    found = [
        packing.most_tokens(dataset.load(Path(arm.tokens)).computed_lengths, job.train, world_size)
        for arm in job.arms
    ]
    return max(found, default=job.train.tokens_per_micro_batch)


def read(path: Path) -> Job:
    return Job.model_validate_json(path.read_text(encoding="utf-8"))


def write(job: Job, path: Path) -> None:
    write_text(path, job.model_dump_json(indent=1))


class Events:
    """A file of JSON lines that the leading rank appends to and the command line follows: {"event": "step", ...}.

    `show` gets each event, too. A rank that does not write tells its failure alone.
    """

    def __init__(
        self,
        path: Path | None,
        writes: bool = True,
        show: Callable[[dict[str, Any]], None] | None = None,
    ):
        self._path, self._show = path, show
        self._file = path.open("a", encoding="utf-8", buffering=1) if path and writes else None
        self._noted: set[str] = set()

    def emit(self, event: str, **fields: Any) -> None:
        told = {"event": event, **fields}
        if self._file is not None:
            self._file.write(json.dumps(told) + "\n")
        if self._show is not None:
            self._show(told)

    def note(self, message: str) -> None:
        """Something that a person should know; told once, however often it is noted."""
        if message not in self._noted:
            self._noted.add(message)
            self.emit("note", message=message)

    def failed(self, rank: int, message: str) -> None:
        """A rank's failure: the one event that every rank may write."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": "error", "rank": rank, "message": message}) + "\n")
