"""The job of one group of ranks: the arms of a base model, with token files and output folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ift_scale.config.train import TrainConfig
from ift_scale.errors import Stopped
from ift_scale.estimate.shape import ModelShape
from ift_scale.io.files import write_text
from ift_scale.records import Arm
from ift_scale.train.data import dataset, packing
from ift_scale.train.model.path import PRUNED, TrainingPath


class Interrupted(Stopped):
    """The ranks have agreed to stop after `step` steps of `arm`, which are saved."""

    def __init__(self, step: int, arm: str = ""):
        self.step, self.arm = step, arm
        super().__init__(f"stopped after step {step}")


class LiveJob(BaseModel):
    """Measure live knowledge on the first `num_questions` questions of a file.

    Measured before the first step, after every `every` steps and after the last.
    """

    model_config = ConfigDict(extra="forbid")

    questions: str
    num_questions: int
    every: int


class ValidationJob(BaseModel):
    """Measure the loss on examples of the token file `tokens`.

    `held_out`: file with the numbers of the examples, held out of the arm's own set; None for all
    examples of a file of its own. Measured before the first step, after every `every` steps and
    after the last. `digest`: identifies the examples.
    """

    model_config = ConfigDict(extra="forbid")

    tokens: str
    held_out: str | None
    every: int
    digest: str

    def examples(self, tokens: dataset.TokenizedSet) -> np.ndarray:
        """Returns the numbers of the validation examples in `tokens`, ascending."""
        if self.held_out is None:
            return np.arange(len(tokens.lengths))
        return load_numbers(self.held_out)


class KLJob(BaseModel):
    """The divergence from the base model (`train.kl`). `cache`: folder of the base's distributions.
    `base`, `tokenizer`: digests of the base model and of its tokenizer. `text`: token file of the
    general text, None without any."""

    model_config = ConfigDict(extra="forbid")

    cache: str
    base: str
    tokenizer: str
    text: str | None = None


class ArmJob(BaseModel):
    """One arm: its set (`source`), the set's token file, the output folder, and the manifest's
    key and inputs."""

    model_config = ConfigDict(extra="forbid")

    arm: Arm
    source: str
    tokens: str
    folder: str
    key: str
    inputs: dict[str, str]
    live: LiveJob | None = None
    validation: ValidationJob | None = None
    kl: KLJob | None = None


class Job(BaseModel):
    """All arms that one group of ranks trains, and the settings that they share."""

    model_config = ConfigDict(extra="forbid")

    model_path: str
    trust_remote_code: bool = False
    hidden_size: int
    shape: ModelShape | None = None
    """Sizes of the model, for the memory model and MFU; None if they are unknown."""
    template: str
    logs: str
    """Folder of the run's logs, to which trackers write their local files."""
    train: TrainConfig
    path: TrainingPath = PRUNED
    """The training path, exact for the base model."""
    stop_file: str | None = None
    """Created by the supervisor to make the ranks save and end."""
    arms: list[ArmJob]


def load_numbers(held_out: str | Path) -> np.ndarray:
    """Returns the numbers of the validation examples in a file."""
    return np.load(held_out, allow_pickle=False)


def training_examples(arm: ArmJob, num_examples: int) -> np.ndarray:
    """Returns the numbers of the set's examples that are trained on, ascending."""
    numbers = np.arange(num_examples)
    if arm.validation is None or arm.validation.held_out is None:
        return numbers
    return np.setdiff1d(numbers, load_numbers(arm.validation.held_out), assume_unique=True)


def trained_lengths(arm: ArmJob) -> np.ndarray:
    """Returns the number of computed tokens of each example that is trained on."""
    lengths = dataset.load(Path(arm.tokens)).computed_lengths
    return lengths[training_examples(arm, len(lengths))]


def max_micro_batch_tokens(job: Job, world_size: int) -> int:
    """Returns about the largest number of tokens in a micro-batch of any arm.

    This is the cap, or a rank's share of the longest step if that is smaller.
    """
    longest = [
        packing.max_micro_batch_tokens(
            trained_lengths(arm),
            job.train,
            world_size,
            job.path.layout,
        )
        for arm in job.arms
    ]
    return max(longest, default=job.train.tokens_per_micro_batch)


def read(path: Path) -> Job:
    return Job.model_validate_json(path.read_text(encoding="utf-8"))


def write(job: Job, path: Path) -> None:
    write_text(path, job.model_dump_json(indent=1))


class Events:
    """A file of JSON lines, {"event": "step", ...}, that rank 0 appends to and the CLI follows.

    `show` is called with each event as well. A rank with `writes` False reports failures only.
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
        record = {"event": event, **fields}
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
        if self._show is not None:
            self._show(record)

    def note(self, message: str) -> None:
        """Emit a message for the user, once, however often it is noted."""
        if message not in self._noted:
            self._noted.add(message)
            self.emit("note", message=message)

    def failed(self, rank: int | None, message: str) -> None:
        """Append the failure of a rank, or of all: the only event that every rank may write."""
        if self._path is not None:
            record = {"event": "error", "rank": rank, "message": message}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
