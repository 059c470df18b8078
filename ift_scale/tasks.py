"""What each stage would do: its key and its inputs, and of train and evaluate a task for each arm.

A stage's key is a digest of its version, the settings that its result depends on, and the digests of its inputs' files.
Settings that only say how fast or where something is computed are left out of keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from ift_scale.analyse import run as analyse
from ift_scale.config import Config, precision_in_force, resolved_yaml
from ift_scale.construct import general
from ift_scale.construct import run as construct
from ift_scale.engines import model_folder
from ift_scale.engines.protocol import identity
from ift_scale.errors import ArtifactError
from ift_scale.evaluate import run as evaluate
from ift_scale.io.files import read_parquet
from ift_scale.io.manifests import (
    Manifest,
    digest_of,
    file_digest,
    folder_digest,
    is_done,
    read_manifest,
)
from ift_scale.probe import run as probe
from ift_scale.questions import run as questions
from ift_scale.records import Arm, Score
from ift_scale.report import run as report
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.train import run as train
from ift_scale.write import deal as writers
from ift_scale.write import run as write

STAGES = ("questions", "probe", "write", "construct", "train", "evaluate", "analyse", "report")

TRAIN_OPERATION = {
    "num_ranks", "launcher", "hostfile", "tokens_per_micro_batch", "packing", "share_prefix", "zero_stage", "offload",
    "hpz", "activation_checkpointing", "compile", "attention", "prune_last_layer", "kernels", "optimizer", "log_every",
    "peak_tflops", "trackers", "checkpoint",
}  # fmt: skip

Inputs = dict[str, str]


class Part(NamedTuple):
    """The `number`-th of `of` parts of the arms (from 0), for several commands that share a run: a job array's tasks."""

    number: int
    of: int

    @property
    def mark(self) -> str:
        """Distinguishes this part's own files."""
        return f"-part{self.number}of{self.of}"


@dataclass(frozen=True)
class ArmTask:
    """One arm's part of the train or evaluate stage."""

    arm: Arm
    source: Path
    folder: Path
    key: str
    inputs: Inputs

    @property
    def done(self) -> bool:
        return is_done(self.folder, self.key)


@lru_cache(maxsize=1)
def _question_file(path: Path, digest: str) -> QuestionFile:
    """The questions of a file, gone through once while its digest is the same; ArtifactError where it was changed by hand."""
    if file_digest(path) != digest:
        raise ArtifactError(
            f"{path}: was changed after it was made. Remove {path.parent} and run `ift-scale questions` again."
        )
    return QuestionFile(path)


class Tasks:
    """A run's folder and settings. `part`: the arms that train and evaluate are about, all where it is None."""

    def __init__(self, config: Config, part: Part | None = None):
        self.config = config
        self.part = part
        self.root = Path(config.output_dir)
        self.model_path = model_folder.resolve(config.model.path)

    def folder(self, stage: str) -> Path:
        return self.root / stage

    # What stages hand on.

    @cached_property
    def base_digest(self) -> str:
        return folder_digest(self.model_path)

    @cached_property
    def source_digests(self) -> Inputs:
        return questions.input_digests(self.config)

    def question_file(self) -> QuestionFile:
        return _question_file(
            self.folder("questions") / questions.FILE, self.digest("questions", questions.FILE)
        )

    def train_scores(self) -> dict[str, Score]:
        """What the probe says of the questions that sets are drawn from, by id."""
        trained = [("collection", "=", "pool"), ("split", "=", "train")]
        scores = read_parquet(self.folder("probe") / probe.FILE, Score, trained)
        return {score.question_id: score for score in scores}

    def arms(self) -> list[Arm]:
        return construct.arms_of(self.config, self.question_file().groups)

    def _arms_of_part(self) -> list[Arm]:
        arms = self.arms()
        return arms if self.part is None else arms[self.part.number :: self.part.of]

    def digest(self, stage: str, file: str) -> str:
        """Digest of a file of a finished stage; ArtifactError where it is missing or was made with other settings."""
        return self._finished(stage, self.folder(stage), self._key_of(stage)).files[file]

    def _key_of(self, stage: str) -> str:
        tasks = {
            "questions": self._questions_task,
            "probe": self._probe_task,
            "construct": self._construct_task,
        }
        return (tasks | {"write": self._write_task, "analyse": self._analyse_task})[stage]()[0]

    def shared_key(self, stage: str) -> str:
        """Digest of a shared stage's settings and inputs, on which all its ranks must agree."""
        if stage == "probe":
            return self._key_of(stage)
        return digest_of({task.arm.name: task.key for task in self.evaluate_tasks(self.arms())})

    def _finished(self, stage: str, folder: Path, key: str) -> Manifest:
        manifest = read_manifest(folder)
        if manifest is None or manifest.key != key:
            problem = (
                "is not there yet" if manifest is None else "was made with other settings or inputs"
            )
            raise ArtifactError(
                f"{folder}: the {stage} stage's result {problem}; run `ift-scale {stage}` or `ift-scale run`"
            )
        return manifest

    # Keys.

    def _questions_task(self) -> tuple[str, Inputs]:
        inputs = self.source_digests
        return digest_of([questions.VERSION, self.config.questions.model_dump(), inputs]), inputs

    def _probe_task(self) -> tuple[str, Inputs]:
        inputs = {"model": self.base_digest, "questions": self.digest("questions", questions.FILE)}
        return digest_of(
            [probe.VERSION, identity(self.config.probe, self.config.model.dtype), inputs]
        ), inputs

    def _write_task(self) -> tuple[str, Inputs]:
        settings, inputs = writers.settings_of(self.config), {}
        if settings is not None:  # else the result is an empty file whatever was probed
            inputs = {
                "questions": self.digest("questions", questions.FILE),
                "probe": self.digest("probe", probe.FILE),
            }
            inputs |= writers.model_digests(self.config, self.base_digest)
        return digest_of([write.VERSION, settings, inputs]), inputs

    def _construct_task(self) -> tuple[str, Inputs]:
        inputs = {"questions": self.digest("questions", questions.FILE)}
        released = self.config.construct.official
        if released is None:
            inputs |= {
                "probe": self.digest("probe", probe.FILE),
                "texts": self.digest("write", write.FILE),
            }
        path = general.path_of(self.config.construct.general)
        if path is not None and path.is_file():
            inputs["general"] = file_digest(path)
        if released is not None and Path(released).is_dir():
            files = sorted(file for file in Path(released).rglob("*") if file.is_file())
            inputs["official"] = digest_of([file_digest(file) for file in files])
        keeps_failed = self.config.write.on_failure == "keep"  # the file of texts is the same
        return digest_of(
            [construct.VERSION, self.config.construct.model_dump(), keeps_failed, inputs]
        ), inputs

    def train_tasks(self) -> list[ArmTask]:
        # Live knowledge changes what is learnt only where it may end an arm.
        stops = self.config.train.live.early_stopping is not None
        left_out = TRAIN_OPERATION if stops else TRAIN_OPERATION | {"live"}
        in_force = {"precision": precision_in_force(self.config.train)}
        settings = [
            self.config.train.model_dump(exclude=left_out) | in_force,
            self.config.evaluate.template,
        ]
        sets = self._finished(
            "construct", self.folder("construct"), self._key_of("construct")
        ).files
        tasks = []
        for arm in self._arms_of_part():
            file = f"{arm.name}.jsonl"
            inputs = {"model": self.base_digest, "set": sets[file]}
            if stops:
                inputs |= {
                    "questions": self.digest("questions", questions.FILE),
                    "probe": self.digest("probe", probe.FILE),
                }
            key = digest_of([train.VERSION, settings, arm.model_dump(), inputs])
            tasks.append(
                ArmTask(
                    arm,
                    self.folder("construct") / file,
                    self.folder("train") / arm.name,
                    key,
                    inputs,
                )
            )
        return tasks

    def evaluate_tasks(self, arms: Sequence[Arm]) -> list[ArmTask]:
        settings = identity(self.config.evaluate, self.config.model.dtype)
        if self.config.evaluate.generate:
            settings["refusal"] = self.config.construct.refusal
        asked = self.digest("questions", questions.FILE)
        tasks = []
        for arm in arms:
            trained = read_manifest(self.folder("train") / arm.name)
            if trained is None:
                raise ArtifactError(
                    f"{self.folder('train') / arm.name}: not trained yet; run `ift-scale train` or `ift-scale run`"
                )
            weights = digest_of(
                {name: d for name, d in trained.files.items() if name.startswith("model/")}
            )
            inputs = {"model": weights, "questions": asked}
            key = digest_of([evaluate.VERSION, settings, inputs, arm.own_domains])
            tasks.append(
                ArmTask(
                    arm,
                    self.folder("train") / arm.name / "model",
                    self.folder("evaluate") / arm.name,
                    key,
                    inputs,
                )
            )
        return tasks

    def _analyse_task(self) -> tuple[str, Inputs]:
        inputs = {"probe": self.digest("probe", probe.FILE)}
        for task in self.evaluate_tasks(self.arms()):
            inputs[task.arm.name] = self._finished("evaluate", task.folder, task.key).files[
                evaluate.FILE
            ]
        settings = [self.config.analyse.model_dump(), self.config.construct.confidence_threshold]
        return digest_of([analyse.VERSION, settings, inputs]), inputs

    def _report_task(self) -> tuple[str, Inputs]:
        inputs = dict(
            self._finished("analyse", self.folder("analyse"), self._key_of("analyse")).files
        )
        inputs[construct.BALANCE] = self.digest("construct", construct.BALANCE)
        made = [m.created for found in self._manifests().values() for m in found]
        return digest_of([report.VERSION, resolved_yaml(self.config), inputs, made]), inputs

    def _manifests(self) -> dict[str, list[Manifest]]:
        found: dict[str, list[Manifest]] = {}
        for stage in STAGES[:-1]:
            folders = (
                [self.folder(stage) / arm.name for arm in self.arms()]
                if stage in ("train", "evaluate")
                else [self.folder(stage)]
            )
            found[stage] = [
                manifest for folder in folders if (manifest := read_manifest(folder)) is not None
            ]
        return found
