"""What a stage is, and what it may ask about the run that it is part of.

A stage makes one artifact, or one for each arm. `Stage.tasks` names them with their keys; the pipeline finds out which are
missing and passes those to `Stage.run`. A key is a digest of the stage's version, the settings that its result depends on,
and the digests of its input files. Settings that only affect speed or location are left out of keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ift_scale.config import Config
from ift_scale.engines import model_folder
from ift_scale.errors import ArtifactError
from ift_scale.io.manifests import (
    Manifest,
    digest_of,
    file_digest,
    folder_digest,
    is_done,
    read_manifest,
    write_manifest,
)
from ift_scale.io.progress import Bar
from ift_scale.ranks.environment import Ranks
from ift_scale.ranks.rendezvous import Meeting
from ift_scale.records import QUESTIONS_FILE, Arm
from ift_scale.scoring.question_file import QuestionFile

Inputs = dict[str, str]
"""Digests of what a stage reads, by name."""


class Part(NamedTuple):
    """The `number`-th of `of` parts of the arms (from 0), for commands that share a run, such as the tasks of a job array."""

    number: int
    of: int

    @property
    def suffix(self) -> str:
        """Distinguishes the files that belong to this part alone."""
        return f"-part{self.number}of{self.of}"


@dataclass(frozen=True)
class Task:
    """One artifact of a stage. `arm`: set if the stage makes one for each arm."""

    stage: str
    folder: Path
    key: str
    inputs: Inputs
    arm: Arm | None = None

    @property
    def done(self) -> bool:
        return is_done(self.folder, self.key)

    def close(
        self,
        config: dict[str, Any],
        counts: dict[str, float],
        seconds: dict[str, float],
        folder: Path | None = None,
    ) -> None:
        """Write the manifest, as the artifact's last file. `folder`: where its files are now, if not yet in place."""
        write_manifest(
            folder or self.folder, self.stage, self.key, config, self.inputs, counts, seconds
        )


class Context:
    """A run: its settings, its folder, and what its finished stages hand on.

    `siblings`: folders of runs whose finished artifacts are taken over if they are what would be made here (the other variants
    of a study). `part`: the arms that train and evaluate are about, all if None. `meeting`: of the ranks, if there are several.
    """

    def __init__(
        self,
        config: Config,
        stages: "Sequence[Stage]",
        ranks: Ranks | None = None,
        siblings: Sequence[Path] = (),
        part: Part | None = None,
        meeting: Meeting | None = None,
    ):
        self.config = config
        self.stages = {stage.name: stage for stage in stages}
        self.ranks = ranks
        self.siblings = siblings
        self.part = part
        self.meeting = meeting
        self.root = Path(config.output_dir)
        self.logs = self.root / "logs"
        self.model_path = model_folder.resolve(config.model.path)
        self._once: dict[str, Any] = {}

    @property
    def leads(self) -> bool:
        """True on the process that writes what all ranks have computed."""
        return self.ranks is None or self.ranks.leads

    def folder(self, stage: str, arm: Arm | None = None) -> Path:
        return self.root / stage / (arm.name if arm else "")

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of `compute`, which is called once for this run."""
        if name not in self._once:
            self._once[name] = compute()
        return self._once[name]

    @property
    def base_digest(self) -> str:
        """Digest of the base model's folder."""
        found: str = self.once("base model", lambda: folder_digest(self.model_path))
        return found

    def task(self, stage: str) -> Task:
        """The one artifact of a stage."""
        (task,) = self.tasks(stage)
        return task

    def tasks(self, stage: str) -> list[Task]:
        return self.stages[stage].tasks(self)

    def finished(self, task: Task) -> Manifest:
        """The manifest of an artifact; ArtifactError if it is missing or was made with other settings."""
        manifest = read_manifest(task.folder)
        if manifest is None or manifest.key != task.key:
            problem = (
                "is not there yet" if manifest is None else "was made with other settings or inputs"
            )
            raise ArtifactError(
                f"{task.folder}: the {task.stage} stage's result {problem}; run `ift-scale {task.stage}` or `ift-scale run`"
            )
        return manifest

    def digest(self, stage: str, file: str) -> str:
        """Digest of a file of a finished stage, as its manifest has it."""
        return self.finished(self.task(stage)).files[file]

    def key_of(self, stage: str) -> str:
        """Digest of all keys of a stage, on which the ranks that share it must agree."""
        return digest_of([task.key for task in self.tasks(stage)])

    def manifests(self) -> dict[str, list[Manifest]]:
        """The manifests that exist, of each stage in order: one, or one for each arm."""
        found: dict[str, list[Manifest]] = {}
        for name, stage in self.stages.items():
            folders = [self.folder(name, arm) for arm in (self.arms() if stage.per_arm else [None])]
            found[name] = [m for folder in folders if (m := read_manifest(folder)) is not None]
        return found

    def arms(self) -> list[Arm]:
        """All arms of the run."""
        found = (stage.arms(self) for stage in self.stages.values())
        return next(arms for arms in found if arms is not None)

    def arms_of_part(self) -> list[Arm]:
        return self.arms() if self.part is None else self.arms()[self.part.number :: self.part.of]

    def question_file(self) -> QuestionFile:
        """The questions stage's file, indexed once; ArtifactError if it was edited."""
        path = self.folder("questions") / QUESTIONS_FILE
        return _question_file(path, self.digest("questions", QUESTIONS_FILE))


@lru_cache(maxsize=1)
def _question_file(path: Path, digest: str) -> QuestionFile:
    if file_digest(path) != digest:
        raise ArtifactError(
            f"{path}: was changed after it was made. Remove {path.parent} and run `ift-scale questions` again."
        )
    return QuestionFile(path)


class Stage:
    """A stage of the pipeline; `STAGE` in its `run.py` is one.

    Subclasses set `name` and `version` and implement `tasks` and `run`. Raise `version` when the same settings and inputs
    give another result than before: finished runs are then made again.
    """

    name: str
    version: int
    per_arm = False
    """True if the stage makes an artifact for each arm."""
    unit = "arms"
    """What `total` counts, for stages that make an artifact for each arm."""
    led = False
    """True if rank 0 finds out what is missing, and the other ranks `follow` it."""

    def tasks(self, context: Context) -> list[Task]:
        """All artifacts of this stage; ArtifactError if an earlier stage's result is missing."""
        raise NotImplementedError

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        """Make the artifacts that are missing and close each with its manifest; the settings are already checked."""
        raise NotImplementedError

    def total(self, context: Context, pending: Sequence[Task]) -> int | None:
        """How many steps the progress bar has; None if that is not known beforehand."""
        return None

    def arms(self, context: Context) -> list[Arm] | None:
        """The run's arms, for the one stage that defines them."""
        return None

    def check(self, context: Context, finished: str | None) -> None:
        """Raise what can be known to be wrong already: before the first stage (`finished` is None), and after each."""

    def follow(self, context: Context) -> None:
        """Work on what rank 0 has found missing; only called if `led`."""

    def single(self, context: Context, key: str, inputs: Inputs) -> list[Task]:
        """`tasks` of a stage with one artifact."""
        return [Task(self.name, context.folder(self.name), key, inputs)]
