"""The stages in order: what is done is skipped, what changed is made again, and nothing else. What decides that is in `tasks`."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from ift_scale.analyse import run as analyse
from ift_scale.analyse.run import ArmScores
from ift_scale.config import Config
from ift_scale.construct import general
from ift_scale.construct import run as construct
from ift_scale.evaluate import run as evaluate
from ift_scale.io.files import read_json, write_json
from ift_scale.io.locks import claimed
from ift_scale.io.manifests import MANIFEST, adopt, is_done, read_manifest
from ift_scale.io.progress import progress, say
from ift_scale.probe import run as probe
from ift_scale.prompts import texts
from ift_scale.questions import run as questions
from ift_scale.ranks.environment import Ranks
from ift_scale.ranks.rendezvous import Meeting
from ift_scale.records import Arm
from ift_scale.report import run as report
from ift_scale.tasks import STAGES, ArmTask, Part, Tasks
from ift_scale.train import run as train
from ift_scale.train.launch import hostfile
from ift_scale.train.live import questions as live_questions
from ift_scale.write import run as write


class Pipeline(Tasks):
    """Each stage method makes what is missing of its stage.

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
        super().__init__(config, part)
        self.siblings = siblings
        self.ranks = ranks
        self.meeting = meeting
        self.logs = self.root / "logs"

    @property
    def leads(self) -> bool:
        """Whether this process writes what all ranks have computed."""
        return self.ranks is None or self.ranks.leads

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
                probe.run(
                    self.config,
                    folder,
                    key,
                    inputs,
                    self.model_path,
                    loaded,
                    self.logs,
                    self.ranks,
                    bar,
                )
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
            pool, scores, written = [], {}, {}
            if self.config.construct.official is None:
                loaded = self.question_file()
                pool = loaded.read(
                    loaded.select(
                        lambda group: group.collection == "pool" and group.split == "train"
                    )
                )
                scores, written = self.train_scores(), texts.read(self.folder("write") / write.FILE)
            construct.run(
                self.config,
                self.folder("construct"),
                key,
                inputs,
                self.arms(),
                pool,
                scores,
                written,
            )
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
                live = self._live_source()
                mark = self.part.mark if self.part else ""
                seconds = train.run(
                    config,
                    self.folder("train"),
                    self.model_path,
                    work,
                    self.logs,
                    bar,
                    live,
                    meeting,
                    mark,
                )
            write_json(self.logs / f"train{mark}-seconds.json", seconds)
            say(f"train: {len(pending)} arms")
            return True

    def _live_source(self) -> live_questions.Source | None:
        """What live knowledge is asked from; None if the base model was not probed, which the authors' sets do not need."""
        path = self.folder("probe") / probe.FILE
        if not path.is_file():
            say("train: no live knowledge, since the base model was not probed")
            return None
        return live_questions.Source(self.question_file(), path)

    def evaluate(self) -> None:
        with self._claims("evaluate", self.evaluate_tasks(self._arms_to_evaluate())) as tasks:
            pending = self._pending("evaluate", tasks)
            if not pending:
                return
            loaded = self.question_file()
            total = sum(
                len(
                    loaded.select(
                        partial(evaluate.asked_of, task.arm, self.config.evaluate.generate)
                    )
                )
                for task in pending
            )
            with progress("evaluate", total) as bar:
                work = [(task.arm, task.source, task.key, task.inputs) for task in pending]
                evaluate.run(
                    self.config, self.folder("evaluate"), work, loaded, self.logs, self.ranks, bar
                )
            say(f"evaluate: {len(pending)} arms, {total} questions")

    def _arms_to_evaluate(self) -> list[Arm]:
        """Of a part, the arms that are trained: others may be in the hands of another command."""
        arms = self._arms_of_part()
        if self.part is None:
            return arms
        trained = [
            arm for arm in arms if read_manifest(self.folder("train") / arm.name) is not None
        ]
        if len(trained) < len(arms):
            say(
                f"evaluate: {len(arms) - len(trained)} arms of this part are not trained yet, and are left out"
            )
        return trained

    @contextmanager
    def _claims(self, stage: str, tasks: list[ArmTask]) -> Iterator[list[ArmTask]]:
        """Of a part's tasks those that no other command works on, held for the block; without a part the folder itself is held."""
        if self.part is None or not self.leads:
            yield tasks
            return
        with ExitStack() as held:
            claims = self.folder(stage) / ".claims"
            mine = [task for task in tasks if held.enter_context(claimed(claims / task.arm.name))]
            if len(mine) < len(tasks):
                say(
                    f"{stage}: {len(tasks) - len(mine)} arms of this part are left to another command that works on them"
                )
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
                (g.num_choices, n)
                for g, n in zip(loaded.groups, loaded.sizes, strict=True)
                if g.split == "test" and g.num_choices
            ]
            sources = report.Sources(
                tables=self.folder("analyse"),
                train=self.folder("train"),
                arms=self.arms(),
                manifests=self._manifests(),
                run_seconds={"train": read_json(self.logs / "train-seconds.json")},
                chance=float(
                    np.average(
                        [1 / choices for choices, _ in tests], weights=[count for _, count in tests]
                    )
                ),
                knowledge=read_json(self.folder("probe") / probe.KNOWLEDGE),
                balance=self.folder("construct") / construct.BALANCE,
                questions=self.folder("questions") / questions.FILE,
                audit=read_json(self.folder("questions") / "audit.json"),
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
            if stage == "questions" and self.config.construct.official is not None:
                construct.released(
                    self.config.construct, self.arms()
                )  # sets that are refused are refused before the probe
        say(f"all stages: {time.monotonic() - started:.0f} s")
        return self.folder("report") / report.PAGE

    def _adopts(self, folder: Path, key: str) -> bool:
        """Take over what a sibling has made, where there is such."""
        if self.ranks is not None and self.ranks.world_size > 1:
            return False
        for root in self.siblings:
            source = root / folder.relative_to(self.root)
            if is_done(source, key):
                adopt(source, folder)
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
