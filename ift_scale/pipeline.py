"""The stages in order, each with its key: what is done is skipped, what changed is made again, and nothing else.

A stage's key is a digest of its version, the settings that its result depends on, and the digests of its inputs' files.
Settings that only say how fast or where something is computed are left out of keys.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

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
from ift_scale.inference import model_folder, texts
from ift_scale.inference.engine import identity
from ift_scale.inference.question_file import QuestionFile
from ift_scale.probe import run as probe
from ift_scale.progress import progress, say
from ift_scale.questions import run as questions
from ift_scale.records import Arm, Score
from ift_scale.rendezvous import Meeting
from ift_scale.report import run as report
from ift_scale.train import hostfile, live_questions
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
    if artifacts.file_digest(path) != digest:
        raise ArtifactError(f"{path}: was changed after it was made. Remove {path.parent} and run `ift-scale questions` again.")
    return QuestionFile(path)


class Pipeline:
    """A run's folder and settings; each stage method makes what is missing of its stage.

    `siblings`: folders of runs whose finished work is taken over where it is what would be made here (a study's other variants).
    `part`: the arms that train and evaluate are about, all where it is None. `meeting`: of the ranks, where there are several.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks | None = None,
        siblings: Sequence[Path] = (),
        part: Part | None = None,
        meeting: Meeting | None = None,
    ):
        self.config = config
        self.siblings = siblings
        self.ranks = ranks
        self.part = part
        self.meeting = meeting
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
        return self.ranks is None or self.ranks.leads

    def train_scores(self) -> dict[str, Score]:
        """What the probe says of the questions that sets are drawn from, by id."""
        trained = [("collection", "=", "pool"), ("split", "=", "train")]
        scores = artifacts.read_parquet(self.folder("probe") / probe.FILE, Score, trained)
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
        tasks = {"questions": self._questions_task, "probe": self._probe_task, "construct": self._construct_task}
        return (tasks | {"write": self._write_task, "analyse": self._analyse_task})[stage]()[0]

    def shared_key(self, stage: str) -> str:
        """Digest of a shared stage's settings and inputs, on which all its ranks must agree."""
        if stage == "probe":
            return self._key_of(stage)
        return digest_of({task.arm.name: task.key for task in self.evaluate_tasks(self.arms())})

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
        released = self.config.construct.official
        if released is not None and Path(released).is_dir():
            files = sorted(file for file in Path(released).rglob("*") if file.is_file())
            inputs["official"] = artifacts.digest_of([artifacts.file_digest(file) for file in files])
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
        for arm in self._arms_of_part():
            file = f"{arm.name}.jsonl"
            inputs = {"model": self.base_digest, "set": sets[file]}
            if stops:
                inputs |= {"questions": self.digest("questions", questions.FILE), "probe": self.digest("probe", probe.FILE)}
            key = digest_of([train.VERSION, settings, arm.model_dump(), inputs])
            tasks.append(ArmTask(arm, self.folder("construct") / file, self.folder("train") / arm.name, key, inputs))
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
                raise ArtifactError(f"{self.folder('train') / arm.name}: not trained yet; run `ift-scale train` or `ift-scale run`")
            weights = digest_of({name: d for name, d in trained.files.items() if name.startswith("model/")})
            inputs = {"model": weights, "questions": asked}
            key = digest_of([evaluate.VERSION, settings, inputs, arm.own_domains])
            tasks.append(ArmTask(arm, self.folder("train") / arm.name / "model", self.folder("evaluate") / arm.name, key, inputs))
        return tasks

    def _analyse_task(self) -> tuple[str, Inputs]:
        inputs = {"probe": self.digest("probe", probe.FILE)}
        for task in self.evaluate_tasks(self.arms()):
            inputs[task.arm.name] = self._finished("evaluate", task.folder, task.key).files[evaluate.FILE]
        settings = [self.config.analyse.model_dump(), self.config.construct.confidence_threshold]
        return digest_of([analyse.VERSION, settings, inputs]), inputs

    def _report_task(self) -> tuple[str, Inputs]:
        inputs = dict(self._finished("analyse", self.folder("analyse"), self._key_of("analyse")).files)
        inputs[construct.BALANCE] = self.digest("construct", construct.BALANCE)
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
                sources = write.Sources(self.model_path, self.question_file, self.train_scores)
                write.run(self.config, self.folder("write"), key, inputs, sources, self.logs, bar)
            self._told("write")

    def construct(self) -> None:
        key, inputs = self._construct_task()
        if not self._skip("construct", key):
            loaded = self.question_file()
            pool = loaded.read(loaded.select(lambda group: group.collection == "pool" and group.split == "train"))
            written = texts.read(self.folder("write") / write.FILE)
            construct.run(self.config, self.folder("construct"), key, inputs, self.arms(), pool, self.train_scores(), written)
            self._told("construct")

    def train(self) -> None:
        if self.meeting is None:
            self._train(None)
        elif self.leads:
            with self.meeting.leading():
                if not self._train(self.meeting):
                    self.meeting.tell("")  # nothing to do, for nobody
        else:
            train.follow(self.meeting)

    def _train(self, meeting: Meeting | None) -> bool:
        """Train what is missing; whether anything was."""
        config = hostfile.with_ranks(self.config, self.ranks)
        with self._claims("train", self.train_tasks()) as tasks:
            pending = self._pending("train", tasks)
            if not pending:
                return False
            train.share_tokens(self.folder("train"), [root / "train" for root in self.siblings])
            with progress("train", len(pending)) as bar:
                work = [(task.arm, task.source, task.key, task.inputs) for task in pending]
                live = live_questions.Source(self.question_file(), self.folder("probe") / probe.FILE)
                mark = self.part.mark if self.part else ""
                seconds = train.run(config, self.folder("train"), self.model_path, work, self.logs, bar, live, meeting, mark)
            artifacts.write_json(self.logs / f"train{mark}-seconds.json", seconds)
            say(f"train: {len(pending)} arms")
            return True

    def evaluate(self) -> None:
        with self._claims("evaluate", self.evaluate_tasks(self._arms_of_part())) as tasks:
            pending = self._pending("evaluate", tasks)
            if not pending:
                return
            loaded = self.question_file()
            total = sum(len(loaded.select(partial(evaluate.asked_of, task.arm, self.config.evaluate.generate))) for task in pending)
            with progress("evaluate", total) as bar:
                work = [(task.arm, task.source, task.key, task.inputs) for task in pending]
                evaluate.run(self.config, self.folder("evaluate"), work, loaded, self.logs, self.ranks, bar)
            say(f"evaluate: {len(pending)} arms, {total} questions")

    @contextmanager
    def _claims(self, stage: str, tasks: list[ArmTask]) -> Iterator[list[ArmTask]]:
        """Of a part's tasks those that no other command works on, held for the block; without a part the folder itself is held."""
        if self.part is None or not self.leads:
            yield tasks
            return
        with ExitStack() as held:
            claims = self.folder(stage) / ".claims"
            mine = [task for task in tasks if held.enter_context(artifacts.claimed(claims / task.arm.name))]
            if len(mine) < len(tasks):
                say(f"{stage}: {len(tasks) - len(mine)} arms of this part are left to another command that works on them")
            yield mine

    def analyse(self) -> None:
        key, inputs = self._analyse_task()
        if self._skip("analyse", key):
            return
        with progress("analyse", len(analyse.TABLES)) as bar:
            found = map(self._arm_scores, self.arms())
            base = analyse.read_scores(self.folder("probe") / probe.FILE)
            analyse.run(self.config, self.folder("analyse"), key, inputs, found, base, bar)
        self._told("analyse")

    def _arm_scores(self, arm: Arm) -> ArmScores:
        scores = analyse.read_scores(self.folder("evaluate") / arm.name / evaluate.FILE)
        return ArmScores(arm, analyse.split_by_group(scores, partial(evaluate.group_of, arm)))

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
                balance=self.folder("construct") / construct.BALANCE,
                questions=self.folder("questions") / questions.FILE,
                audit=artifacts.read_json(self.folder("questions") / "audit.json"),
            )
            report.run(self.config, self.folder("report"), key, inputs, sources)
            self._told("report")

    def run(self) -> Path:
        """All stages; returns the report's page."""
        started = time.monotonic()
        path = general.path_of(self.config.construct.general)
        if path is not None:
            general.load(path)  # a mistake there is told before the probe, not after it
        hostfile.with_ranks(self.config, self.ranks)  # so is one in the hostfile
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

    def _adopts(self, folder: Path, key: str) -> bool:
        """Take over what a sibling has made, where there is such."""
        if self.ranks is not None and self.ranks.world_size > 1:
            return False
        for root in self.siblings:
            source = root / folder.relative_to(self.root)
            if is_done(source, key):
                artifacts.adopt(source, folder)
                return True
        return False

    def _skip(self, stage: str, key: str) -> bool:
        done = is_done(self.folder(stage), key)
        if not done and self._adopts(self.folder(stage), key):
            say(f"{stage}: taken over from another variant")
            return True
        if done:
            say(f"{stage}: done already")
        elif self.leads:
            # An old manifest must not vouch for new files, should this run be killed between them.
            (self.folder(stage) / MANIFEST).unlink(missing_ok=True)
        return done

    def _pending(self, stage: str, tasks: list[ArmTask]) -> list[ArmTask]:
        """The tasks that are neither done nor a sibling's."""
        left = [task for task in tasks if not task.done]
        pending = [task for task in left if not self._adopts(task.folder, task.key)]
        if len(left) < len(tasks):
            say(f"{stage}: {len(tasks) - len(left)} of {len(tasks)} arms done already")
        if len(pending) < len(left):
            say(f"{stage}: {len(left) - len(pending)} arms taken over from another variant")
        for task in pending if self.leads else []:
            (task.folder / MANIFEST).unlink(missing_ok=True)
        return pending

    def _told(self, stage: str) -> None:
        manifest = read_manifest(self.folder(stage))
        if manifest is None:
            return  # another rank merges
        counts = ", ".join(f"{name} {value:g}" for name, value in list(manifest.counts.items())[:6])
        say(f"{stage}: {counts} ({manifest.seconds['total']:.1f} s)")
