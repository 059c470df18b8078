"""The interface of a stage, and the run that it is part of.

A stage produces one artifact, or one per arm. `Stage.tasks` lists them with their keys; the
pipeline determines which are missing and passes those to `Stage.run`. A key is a digest of the
stage's version, the settings that its result depends on, and the digests of its input files.
Settings that only affect speed or location are not part of keys.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ift_scale.config import Config, TrainConfig
from ift_scale.engines import model_folder
from ift_scale.errors import ArtifactError
from ift_scale.io import integrity
from ift_scale.io.manifests import (
    Manifest,
    digest_of,
    folder_digest,
    read_manifest,
    write_manifest,
)
from ift_scale.io.progress import Bar, say
from ift_scale.ranks.environment import Ranks
from ift_scale.ranks.rendezvous import Rendezvous
from ift_scale.records import QUESTIONS_FILE, Arm
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.treatments import BASE, DERIVED, Dose, dose_of

Inputs = dict[str, str]
"""Digests of a stage's inputs, by name."""


def trained_arm(arm: Arm) -> Arm:
    """Returns the arm that a derived model (`treatments.DERIVED`) is made of; the arm itself if it
    is trained."""
    return arm.model_copy(update={"setting": dose_of(arm.setting).trained})


def with_derived(arms: Sequence[Arm], train: TrainConfig) -> list[Arm]:
    """Returns the trained arms, each followed by those that are derived from it."""
    amounts: list[Sequence[float]] = [train.export_epochs, train.average, train.restore]
    kinds = [(kind, a) for kind, of_kind in zip(DERIVED, amounts, strict=True) for a in of_kind]
    found = []
    for arm in arms:
        dose = dose_of(arm.setting)
        names = [Dose(dose.of, dose.size, kind, amount).setting for kind, amount in kinds]
        found += [arm, *(arm.model_copy(update={"setting": name}) for name in names)]
    return found


class Part(NamedTuple):
    """Part `number` (from 0) of `of` equal parts of the arms.

    For commands that share a run, such as the tasks of a job array.
    """

    number: int
    of: int

    @property
    def suffix(self) -> str:
        """Distinguishes the files that belong to this part only."""
        return f"-part{self.number}of{self.of}"


@dataclass(frozen=True)
class Task:
    """An artifact that a stage must produce. `arm` is set if the stage produces one per arm."""

    stage: str
    folder: Path
    key: str
    inputs: Inputs
    arm: Arm | None = None

    @property
    def done(self) -> bool:
        """True if the artifact exists, complete and with this key.

        Raises ArtifactError if a file of it was changed after it was written.
        """
        return integrity.is_intact(self.folder, self.key)

    def close(
        self,
        config: dict[str, Any],
        counts: dict[str, float],
        seconds: dict[str, float],
        folder: Path | None = None,
    ) -> None:
        """Writes the manifest as the artifact's last file.

        `folder`: the current location of its files, if they are not in place yet.
        """
        write_manifest(
            folder or self.folder, self.stage, self.key, config, self.inputs, counts, seconds
        )


class Context:
    """A run: its settings, its folder, and the results of its finished stages.

    `siblings`: folders of other runs (variants of the same study), whose finished artifacts are
    reused if their keys are equal. `part`: the arms that train and evaluate work on, all if None.
    `rendezvous`: connects the ranks, if there are several.
    """

    def __init__(
        self,
        config: Config,
        stages: "Sequence[Stage]",
        ranks: Ranks | None = None,
        siblings: Sequence[Path] = (),
        part: Part | None = None,
        rendezvous: Rendezvous | None = None,
    ):
        self.config = config
        self.stages = {stage.name: stage for stage in stages}
        self.ranks = ranks
        self.siblings = siblings
        self.part = part
        self.rendezvous = rendezvous
        self.root = Path(config.output_dir)
        self.logs = self.root / "logs"
        self.model_path = model_folder.resolve(config.model.path)
        self._once: dict[str, Any] = {}

    @property
    def is_rank_zero(self) -> bool:
        """True on the process that writes what all ranks have computed."""
        return self.ranks is None or self.ranks.is_rank_zero

    def folder(self, stage: str, arm: Arm | None = None) -> Path:
        """Returns the folder of a stage, or of one of its arms."""
        return self.root / stage / (arm.name if arm else "")

    def folder_of(self, stage: str, arm: Arm | None) -> Path:
        """Returns the folder of an arm, or for None the base model's, in a stage that has both."""
        return self.root / stage / (arm.name if arm else BASE)

    def model_of(self, arm: Arm | None) -> Path:
        """Returns the model folder of an arm, or for None the base model's."""
        return self.folder("train", arm) / "model" if arm else self.model_path

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns the result of `compute`, which is called once per run and `name`."""
        if name not in self._once:
            self._once[name] = compute()
        return self._once[name]

    @property
    def base_digest(self) -> str:
        """Digest of the base model's folder."""
        digest: str = self.once("base model", lambda: folder_digest(self.model_path))
        return digest

    def task(self, stage: str) -> Task:
        """Returns the only task of a stage with a single artifact."""
        (task,) = self.tasks(stage)
        return task

    def tasks(self, stage: str) -> list[Task]:
        """Returns all tasks of a stage."""
        return self.stages[stage].tasks(self)

    def finished(self, task: Task) -> Manifest:
        """Returns the manifest of a finished artifact.

        Raises ArtifactError if the artifact is missing or was made with other settings or inputs.
        """
        manifest = read_manifest(task.folder)
        if manifest is None or manifest.key != task.key:
            problem = "was made with other settings or inputs" if manifest else "does not exist yet"
            raise ArtifactError(
                f"{task.folder}: the {task.stage} stage's result {problem}; run `ift-scale "
                f"{task.stage}` or `ift-scale run`"
            )
        return manifest

    def digest(self, stage: str, file: str) -> str:
        """Returns the digest of a file of a finished stage, as recorded in its manifest."""
        return self.finished(self.task(stage)).files[file]

    def check_inputs(self, stage: "Stage", pending: Sequence[Task] | None = None) -> None:
        """Raises ArtifactError if a file that `stage` reads was changed after it was written.

        With `pending`, also if a file is missing that these tasks need.
        """
        for name, _, pattern in (read.partition("/") for read in stage.reads):
            arms: Sequence[Arm | None] = [None]
            if self.stages[name].per_arm and not stage.per_arm:
                arms = self.arms()
            elif self.stages[name].per_arm:
                own = [task.arm for task in pending or () if task.arm]
                arms = self.arms_of_part() if pending is None else own
            for folder in self._folders(name, arms):
                integrity.check(folder, (pattern,), complete=pending is not None)

    def key_of(self, stage: str) -> str:
        """Returns a digest of all keys of a stage. Ranks that share the stage must agree on it."""
        return digest_of([task.key for task in self.tasks(stage)])

    def manifests(self) -> dict[str, list[Manifest]]:
        """Returns the existing manifests of each stage, in order: one, or one per arm."""
        by_stage: dict[str, list[Manifest]] = {}
        for name, stage in self.stages.items():
            folders = self._folders(name, self.arms() if stage.per_arm else [None])
            by_stage[name] = [m for folder in folders if (m := read_manifest(folder)) is not None]
        return by_stage

    def _folders(self, stage: str, arms: Sequence[Arm | None]) -> list[Path]:
        base = [self.folder_of(stage, None)] if self.stages[stage].of_base else []
        return base + [self.folder(stage, arm) for arm in arms]

    def arms(self) -> list[Arm]:
        """Returns all arms of the run."""
        candidates = (stage.arms(self) for stage in self.stages.values())
        return next(arms for arms in candidates if arms is not None)

    def trained_arms(self) -> list[Arm]:
        """Returns the arms that are trained: all but those derived from another."""
        return [arm for arm in self.arms() if trained_arm(arm) == arm]

    def arms_of_part(self) -> list[Arm]:
        """Returns the arms that this command works on; derived ones go with their trained arm."""
        if self.part is None:
            return self.arms()
        trained = self.trained_arms()[self.part.number :: self.part.of]
        return [arm for arm in self.arms() if trained_arm(arm) in trained]

    def trained_weights(self, stage: str) -> dict[Arm, str]:
        """Returns the digest of the weights of each arm that `stage` reads.

        With a part, arms that other commands still train are left out. Without one, raises
        ArtifactError if an arm is not trained.
        """
        found: dict[Arm, str] = {}
        arms = self.arms_of_part()
        for arm in arms:
            trained = read_manifest(self.folder("train", arm))
            if trained is not None:
                files = {n: d for n, d in trained.files.items() if n.startswith("model/")}
                found[arm] = digest_of(files)
            elif self.part is None:
                raise ArtifactError(
                    f"{self.folder('train', arm)}: not trained yet;"
                    " run `ift-scale train` or `ift-scale run`"
                )
        if len(found) < len(arms):
            missing = len(arms) - len(found)
            say(f"{stage}: {missing} arms of this part are not trained yet and are skipped")
        return found

    def question_file(self) -> QuestionFile:
        """Returns the questions stage's file, indexed once. ArtifactError if it was changed."""
        path = self.folder("questions") / QUESTIONS_FILE
        return _question_file(path, self.digest("questions", QUESTIONS_FILE))


@lru_cache(maxsize=1)
def _question_file(path: Path, digest: str) -> QuestionFile:
    integrity.check(path.parent, (path.name,))
    return QuestionFile(path)


class Stage(ABC):
    """A stage of the pipeline. `STAGE` in a stage's `run.py` is an instance.

    Subclasses set `name` and `version` and implement `tasks` and `run`. Increment `version` if the
    same settings and inputs give another result than before; finished runs are then repeated.
    """

    name: str
    version: int
    per_arm = False
    """True if the stage produces one artifact per arm."""
    of_base = False
    """True if it also produces one of the base model, in the folder BASE."""
    unit = "arms"
    """Unit of `total` for stages with one artifact per arm."""
    reads: Sequence[str] = ()
    """The files of earlier stages that `run` reads, as STAGE/PATTERN (`integrity.check`), of every
    arm if there is one artifact per arm. The pipeline compares them with their manifests."""
    led = False
    """True if only rank 0 determines what is missing, and the other ranks call `follow`."""

    @abstractmethod
    def tasks(self, context: Context) -> list[Task]:
        """Returns all tasks of this stage. Raises ArtifactError if an earlier result is missing."""

    @abstractmethod
    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        """Produces the missing artifacts and closes each with its manifest.

        `check` has been called before.
        """

    def total(self, context: Context, pending: Sequence[Task]) -> int | None:
        """Returns the length of the progress bar; None if it is not known in advance."""
        return None

    def arms(self, context: Context) -> list[Arm] | None:
        """Returns the run's arms; only the stage that defines them does."""
        return None

    def check(self, context: Context, finished: str | None) -> None:
        """Raises errors that are detectable without running the stage.

        Called before the first stage (`finished` is None) and after each finished stage.
        """
        return

    def hang_limit(self, config: Config) -> float:
        """Returns the seconds in which at least one of several ranks must advance; 0: no limit.

        For stages whose ranks share the work and take over that of a lost one.
        """
        return 0.0

    def follow(self, context: Context) -> None:
        """Works on what rank 0 has found missing. Only called if `led`."""
        return

    def single(self, context: Context, key: str, inputs: Inputs) -> list[Task]:
        """Returns the tasks of a stage with a single artifact."""
        return [Task(self.name, context.folder(self.name), key, inputs)]
