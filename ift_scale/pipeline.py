"""The stages in order, each with its key: what is done is skipped, what changed is made again, and nothing else.

A stage's key is a digest of its version, the settings that its result depends on, and the digests of its inputs' files.
Settings that only say how fast or where something is computed are left out of keys.
"""

import time
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np

from ift_scale import artifacts
from ift_scale.analyse import run as analyse
from ift_scale.analyse.run import ArmScores
from ift_scale.artifacts import MANIFEST, Manifest, digest_of, is_done, read_manifest
from ift_scale.config import Config, precision_in_force, resolved_yaml
from ift_scale.construct import general
from ift_scale.construct import run as construct
from ift_scale.distributed import Ranks
from ift_scale.errors import ArtifactError
from ift_scale.evaluate import run as evaluate
from ift_scale.inference import model_folder
from ift_scale.inference.engine import identity
from ift_scale.inference.question_file import QuestionFile
from ift_scale.probe import run as probe
from ift_scale.progress import progress, say
from ift_scale.questions import run as questions
from ift_scale.records import Arm, Score
from ift_scale.report import run as report
from ift_scale.train import live_questions
from ift_scale.train import run as train
from ift_scale.write import deal as writers
from ift_scale.write import run as write

STAGES = ("questions", "probe", "write", "construct", "train", "evaluate", "analyse", "report")

TRAIN_OPERATION = {
    "num_ranks", "launcher", "hostfile", "tokens_per_micro_batch", "packing", "share_prefix", "zero_stage", "offload",
    "activation_checkpointing", "compile", "attention", "prune_last_layer", "kernels", "log_every", "peak_tflops", "trackers",
    "checkpoint",
}  # fmt: skip

Inputs = dict[str, str]


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
    if artifacts.file_digest(path) != digest:
        raise ArtifactError(f"{path}: was changed after it was made. Remove {path.parent} and run `ift-scale questions` again.")
    return QuestionFile(path)


class Pipeline:
    """A run's folder and settings; each stage method makes what is missing of its stage."""

    def __init__(self, config: Config, ranks: Ranks | None = None):
        self.config = config
        self.ranks = ranks
        self.root = Path(config.output_dir)
        self.logs = self.root / "logs"
        self.model_path = model_folder.resolve(config.model.path)
        self.run_seconds: dict[str, dict[str, float]] = {}

    def folder(self, stage: str) -> Path:
        return self.root / stage

    # What stages hand on.

    @cached_property
    def base_digest(self) -> str:
        return artifacts.folder_digest(self.model_path)

    @cached_property
    def source_digests(self) -> Inputs:
        return questions.input_digests(self.config)

    def question_file(self) -> QuestionFile:
        return _question_file(self.folder("questions") / questions.FILE, self.digest("questions", questions.FILE))

    @property
    def leads(self) -> bool:
        """Whether this process writes what all ranks have computed."""
        return self.ranks is None or self.ranks.rank == 0

    def base_scores(self) -> dict[str, Score]:
        scores = artifacts.read_parquet(self.folder("probe") / probe.FILE, Score)
        return {score.question_id: score for score in scores}

    def arms(self) -> list[Arm]:
        return construct.arms_of(self.config, self.question_file().groups)

    def digest(self, stage: str, file: str) -> str:
        """Digest of a file of a finished stage; ArtifactError where it is missing or was made with other settings."""
        return self._finished(stage, self.folder(stage), self._key_of(stage)).files[file]

    def _key_of(self, stage: str) -> str:
        tasks = {"questions": self._questions_task, "probe": self._probe_task, "construct": self._construct_task}
        return (tasks | {"write": self._write_task, "analyse": self._analyse_task})[stage]()[0]

    def _finished(self, stage: str, folder: Path, key: str) -> Manifest:
        manifest = read_manifest(folder)
        if manifest is None or manifest.key != key:
            problem = "is not there yet" if manifest is None else "was made with other settings or inputs"
            raise ArtifactError(f"{folder}: the {stage} stage's result {problem}; run `ift-scale {stage}` or `ift-scale run`")
        return manifest

    # Keys.

    def _questions_task(self) -> tuple[str, Inputs]:
        inputs = self.source_digests
        return digest_of([questions.VERSION, self.config.questions.model_dump(), inputs]), inputs

    def _probe_task(self) -> tuple[str, Inputs]:
        inputs = {"model": self.base_digest, "questions": self.digest("questions", questions.FILE)}
        return digest_of([probe.VERSION, identity(self.config.probe, self.config.model.dtype), inputs]), inputs

    def _write_task(self) -> tuple[str, Inputs]:
        settings, inputs = writers.settings_of(self.config), {}
        if settings is not None:  # else the result is an empty file whatever was probed
            inputs = {"questions": self.digest("questions", questions.FILE), "probe": self.digest("probe", probe.FILE)}
            inputs |= writers.model_digests(self.config, self.base_digest)
        return digest_of([write.VERSION, settings, inputs]), inputs

    def _construct_task(self) -> tuple[str, Inputs]:
        inputs = {"questions": self.digest("questions", questions.FILE), "probe": self.digest("probe", probe.FILE)}
        inputs["texts"] = self.digest("write", write.FILE)
        path = general.path_of(self.config.construct.general)
        if path is not None and path.is_file():
            inputs["general"] = artifacts.file_digest(path)
        keeps_failed = self.config.write.on_failure == "keep"  # the file of texts is the same
        return digest_of([construct.VERSION, self.config.construct.model_dump(), keeps_failed, inputs]), inputs

    def train_tasks(self) -> list[ArmTask]:
        # Live knowledge changes what is learnt only where it may end an arm.
        stops = self.config.train.live.early_stopping is not None
        left_out = TRAIN_OPERATION if stops else TRAIN_OPERATION | {"live"}
        in_force = {"precision": precision_in_force(self.config.train)}
        settings = [self.config.train.model_dump(exclude=left_out) | in_force, self.config.evaluate.template]
        sets = self._finished("construct", self.folder("construct"), self._key_of("construct")).files
        tasks = []
        for arm in self.arms():
            file = f"{arm.name}.jsonl"
            inputs = {"model": self.base_digest, "set": sets[file]}
            if stops:
                inputs |= {"questions": self.digest("questions", questions.FILE), "probe": self.digest("probe", probe.FILE)}
            key = digest_of([train.VERSION, settings, arm.model_dump(), inputs])
            tasks.append(ArmTask(arm, self.folder("construct") / file, self.folder("train") / arm.name, key, inputs))
        return tasks

    def evaluate_tasks(self) -> list[ArmTask]:
        settings = identity(self.config.evaluate, self.config.model.dtype)
        asked = self.digest("questions", questions.FILE)
        tasks = []
        for arm in self.arms():
            trained = read_manifest(self.folder("train") / arm.name)
            if trained is None:
                raise ArtifactError(f"{self.folder('train') / arm.name}: not trained yet; run `ift-scale train` or `ift-scale run`")
            weights = digest_of({name: d for name, d in trained.files.items() if name.startswith("model/")})
            inputs = {"model": weights, "questions": asked}
            key = digest_of([evaluate.VERSION, settings, inputs, arm.domain])
            tasks.append(ArmTask(arm, self.folder("train") / arm.name / "model", self.folder("evaluate") / arm.name, key, inputs))
        return tasks

    def _analyse_task(self) -> tuple[str, Inputs]:
        inputs = {"probe": self.digest("probe", probe.FILE)}
        for task in self.evaluate_tasks():
            inputs[task.arm.name] = self._finished("evaluate", task.folder, task.key).files[evaluate.FILE]
        return digest_of([analyse.VERSION, self.config.analyse.model_dump(), inputs]), inputs

    def _report_task(self) -> tuple[str, Inputs]:
        inputs = {name: self.digest("analyse", name) for name in ("arms.csv", "settings.csv", "comparisons.csv", "base.csv")}
        made = [m.created for found in self._manifests().values() for m in found]
        return digest_of([report.VERSION, resolved_yaml(self.config), inputs, made]), inputs

    # Stages.

    def questions(self) -> None:
        key, inputs = self._questions_task()
        if not self._skip("questions", key):
            with progress("questions", None) as bar:
                questions.run(self.config, self.folder("questions"), key, inputs, bar)
            self._told("questions")

    def probe(self) -> None:
        key, inputs = self._probe_task()
        if not self._skip("probe", key):
            loaded = self.question_file()
            total = len(loaded.select(lambda group: probe.wanted(self.config.probe, group)))
            with progress("probe", total) as bar:
                folder = self.folder("probe")
                probe.run(self.config, folder, key, inputs, self.model_path, loaded, self.logs, self.ranks, bar)
            self._told("probe")

    def write(self) -> None:
        key, inputs = self._write_task()
        if not self._skip("write", key):
            with progress("write", None) as bar:
                sources = write.Sources(self.model_path, self.question_file, self.base_scores)
                write.run(self.config, self.folder("write"), key, inputs, sources, self.logs, bar)
            self._told("write")

    def construct(self) -> None:
        key, inputs = self._construct_task()
        if not self._skip("construct", key):
            loaded = self.question_file()
            pool = loaded.read(loaded.select(lambda group: group.collection == "pool" and group.split == "train"))
            construct.run(self.config, self.folder("construct"), key, inputs, self.arms(), pool, self.base_scores())
            self._told("construct")

    def train(self) -> None:
        tasks = self.train_tasks()
        pending = [task for task in tasks if not task.done]
        if self._skip_arms("train", tasks, pending):
            return
        with progress("train", len(pending)) as bar:
            work = [(task.arm, task.source, task.key, task.inputs) for task in pending]
            live = live_questions.Source(self.question_file(), self.folder("probe") / probe.FILE)
            seconds = train.run(self.config, self.folder("train"), self.model_path, work, self.logs, bar, live)
        artifacts.write_json(self.logs / "train-seconds.json", seconds)
        say(f"train: {len(pending)} arms")

    def evaluate(self) -> None:
        tasks = self.evaluate_tasks()
        pending = [task for task in tasks if not task.done]
        if self._skip_arms("evaluate", tasks, pending):
            return
        loaded = self.question_file()
        total = sum(len(loaded.select(partial(evaluate.asked_of, task.arm))) for task in pending)
        with progress("evaluate", total) as bar:
            work = [(task.arm, task.source, task.key, task.inputs) for task in pending]
            evaluate.run(self.config, self.folder("evaluate"), work, loaded, self.logs, self.ranks, bar)
        say(f"evaluate: {len(pending)} arms, {total} questions")

    def analyse(self) -> None:
        key, inputs = self._analyse_task()
        if self._skip("analyse", key):
            return
        with progress("analyse", 4) as bar:
            found = [self._arm_scores(arm) for arm in self.arms()]
            analyse.run(self.config, self.folder("analyse"), key, inputs, found, self.base_scores(), bar)
        self._told("analyse")

    def _arm_scores(self, arm: Arm) -> ArmScores:
        groups: dict[str, list[Score]] = {}
        for score in artifacts.read_parquet(self.folder("evaluate") / arm.name / evaluate.FILE, Score):
            group = evaluate.group_of(score.domain, score.collection, arm.domain)
            if group is not None:
                groups.setdefault(group, []).append(score)
        return ArmScores(arm, groups)

    def report(self) -> None:
        key, inputs = self._report_task()
        if not self._skip("report", key):
            loaded = self.question_file()
            tests = [
                (g.num_choices, n) for g, n in zip(loaded.groups, loaded.sizes, strict=True) if g.split == "test" and g.num_choices
            ]
            sources = report.Sources(
                tables=self.folder("analyse"),
                train=self.folder("train"),
                arms=self.arms(),
                manifests=self._manifests(),
                run_seconds={"train": artifacts.read_json(self.logs / "train-seconds.json")},
                chance=float(np.average([1 / choices for choices, _ in tests], weights=[count for _, count in tests])),
                knowledge=artifacts.read_json(self.folder("probe") / probe.KNOWLEDGE),
            )
            report.run(self.config, self.folder("report"), key, inputs, sources)
            self._told("report")

    def run(self) -> Path:
        """All stages; returns the report's page."""
        started = time.monotonic()
        path = general.path_of(self.config.construct.general)
        if path is not None:
            general.load(path)  # a mistake there is told before the probe, not after it
        for stage in STAGES:
            getattr(self, stage)()
        say(f"all stages: {time.monotonic() - started:.0f} s")
        return self.folder("report") / report.PAGE

    def _manifests(self) -> dict[str, list[Manifest]]:
        found: dict[str, list[Manifest]] = {}
        for stage in STAGES[:-1]:
            folders = (
                [self.folder(stage) / arm.name for arm in self.arms()] if stage in ("train", "evaluate") else [self.folder(stage)]
            )
            found[stage] = [manifest for folder in folders if (manifest := read_manifest(folder)) is not None]
        return found

    def _skip(self, stage: str, key: str) -> bool:
        done = is_done(self.folder(stage), key)
        if done:
            say(f"{stage}: done already")
        elif self.leads:
            # An old manifest must not vouch for new files, should this run be killed between them.
            (self.folder(stage) / MANIFEST).unlink(missing_ok=True)
        return done

    def _skip_arms(self, stage: str, tasks: list[ArmTask], pending: list[ArmTask]) -> bool:
        if len(pending) < len(tasks):
            say(f"{stage}: {len(tasks) - len(pending)} of {len(tasks)} arms done already")
        for task in pending if self.leads else []:
            (task.folder / MANIFEST).unlink(missing_ok=True)
        return not pending

    def _told(self, stage: str) -> None:
        manifest = read_manifest(self.folder(stage))
        if manifest is None:
            return  # another rank merges
        counts = ", ".join(f"{name} {value:g}" for name, value in list(manifest.counts.items())[:6])
        say(f"{stage}: {counts} ({manifest.seconds['total']:.1f} s)")
