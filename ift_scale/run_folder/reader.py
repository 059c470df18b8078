"""`Run`: what a run has stored, for notebooks. docs/notebooks.md lists every frame's columns."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pandas as pd

from ift_scale.analyse.run import OPTIONAL_TABLES, TABLES
from ift_scale.config import Config
from ift_scale.construct.arms import arms_of
from ift_scale.errors import ArtifactError, DataError, Place, did_you_mean
from ift_scale.io import integrity
from ift_scale.io.files import read_json
from ift_scale.io.manifests import MANIFEST, Edit, read_manifest
from ift_scale.records import BALANCE_FILE, KNOWLEDGE_FILE, QUESTIONS_FILE, Arm
from ift_scale.report import facts, findings
from ift_scale.run_folder import frames
from ift_scale.run_folder.locate import Located, locate
from ift_scale.run_folder.progress import StageProgress, progress_of
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.stage import trained_arm
from ift_scale.stages import stages_of


class Run:
    """A run, or a study with all its variants.

    `path` is a run's folder (its `output_dir`), a study's folder, or a configuration file. Files
    are read when a frame is first asked for. A property raises ArtifactError, which names the
    command to run, if its stage has not been run yet.

    For a study every frame has the rows of all variants, with the column `variant` first;
    `variants` has each one's own Run.

    >>> run = ift_scale.Run("runs/demo")
    >>> run.comparisons.query("domain == 'all' and group == 'HOMO'")
    """

    def __init__(self, path: str | Path):
        self._located = locate(path)

    @classmethod
    def _of(cls, located: Located) -> "Run":
        run = cls.__new__(cls)
        run._located = located
        return run

    def __repr__(self) -> str:
        names = f", variants {', '.join(self.variants)}" if self.variants else ""
        return f"Run({str(self.folder)!r}{names})"

    @property
    def folder(self) -> Path:
        return self._located.folder

    @property
    def config(self) -> Config:
        """The settings of the command that last worked in the folder."""
        return self._located.config

    @property
    def config_file(self) -> Path | None:
        """The configuration file that was given; None if a folder was given."""
        return self._located.config_file

    @property
    def is_started(self) -> bool:
        """True if a command has worked in the folder; for a study, in one of its variants'."""
        if self.variants:
            return any(run.is_started for run in self.variants.values())
        return self._located.started

    @property
    def variant(self) -> str | None:
        """The name of a study's variant; None for other runs."""
        return self._located.variant

    @cached_property
    def variants(self) -> dict[str, "Run"]:
        """The variants of a study by name; empty for a single run."""
        return {name: Run._of(located) for name, located in self._located.variants.items()}

    @cached_property
    def progress(self) -> list[StageProgress]:
        """How far each stage has come; empty for a study, whose variants have their own."""
        if self.variants:
            return []
        has_questions = bool(self.config.questions.sources)
        known = not has_questions or (self.folder / "questions" / MANIFEST).is_file()
        stages = stages_of(self.config)
        return progress_of(self.folder, stages, self.arm_list if known else None)

    @property
    def is_finished(self) -> bool:
        """True if every stage of every variant is up to date."""
        if self.variants:
            return all(run.is_finished for run in self.variants.values())
        return all(stage.state == "done" for stage in self.progress)

    @cached_property
    def arm_list(self) -> list[Arm]:
        """The arms as records, in the order of training. Empty for a study."""
        if self.variants:
            return []
        has_questions = self.config.questions.sources
        return arms_of(self.config, self._question_file.groups if has_questions else [])

    # Frames. What a property gives is kept, so a change to it stays.

    @cached_property
    def arms(self) -> pd.DataFrame:
        """One row per arm: name, domain, setting, seed, examples in its set, trained, evaluated."""
        return self._frame(lambda run: frames.arms(run.folder, run.arm_list))

    @cached_property
    def questions(self) -> pd.DataFrame:
        """One row per question of every split, with texts, options and answer."""
        return self._frame(lambda run: frames.questions(run._file("questions", "questions.jsonl")))

    @cached_property
    def probe(self) -> pd.DataFrame:
        """One row per probed question: log-probabilities, prediction, confidence, correctness."""
        return self._frame(lambda run: frames.score_file(run._file("probe", "probe.parquet")))

    @cached_property
    def sets(self) -> pd.DataFrame:
        """One row per training example of every arm."""
        return self._frame(_sets)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row per optimizer step of every trained arm: loss, gradient norm, throughput."""
        return self._frame(lambda run: run._by_arm("train", "metrics.jsonl", frames.step_rows))

    @cached_property
    def live(self) -> pd.DataFrame:
        """One row per live measurement of every trained arm; empty if `train.live.every` is 0."""
        return self._frame(_live)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per evaluated arm and question; `group` is HOMO, ID, OOD or a benchmark's own."""
        return self._frame(
            lambda run: frames.with_test_groups(
                run._by_arm("evaluate", "scores.parquet", frames.score_file), run.arm_list
            )
        )

    @property
    def settings(self) -> pd.DataFrame:
        """Accuracy and consistency with intervals, by setting, domain and group."""
        return self.table("settings")

    @property
    def comparisons(self) -> pd.DataFrame:
        """Paired differences of two settings with intervals and tests, by domain and group."""
        return self.table("comparisons")

    @property
    def base(self) -> pd.DataFrame:
        """Accuracy of the base model with intervals, by domain and group."""
        return self.table("base")

    def table(self, name: str) -> pd.DataFrame:
        """A table of the analyse stage, or the construct stage's `balance`, as docs/report.md
        describes them. DataError for a name that is not one of them."""
        known = (*TABLES, *OPTIONAL_TABLES, "balance")
        if name not in known:
            raise DataError(Place("table"), "no such table", did_you_mean(name, known), name)
        stage, file = (
            ("construct", BALANCE_FILE) if name == "balance" else ("analyse", f"{name}.csv")
        )
        return self._frame(
            lambda run: facts.read(run._file(stage, file), name).astype({"reason": "string"})
        )

    @cached_property
    def findings(self) -> pd.DataFrame:
        """One row per claim of the paper and group: verdict and the numbers in a sentence."""
        return self._frame(_findings)

    @cached_property
    def cautions(self) -> list[str]:
        """What to know before any finding is read, as the report prints it. Empty for a study."""
        if self.variants:
            return []
        seeds = {arm.seed for arm in self.arm_list}
        return findings.cautions(self.base, self._chance, len(seeds), self._edits)

    @cached_property
    def facts(self) -> facts.Facts:
        """The tables as the report's own functions take them."""
        self._file("analyse", "settings.csv")
        integrity.check(self.folder / "analyse")
        for arm in self.arm_list:
            integrity.check(self.folder / "train" / arm.name, ("*.jsonl",))
        sources = facts.ReportInputs(
            tables=self.folder / "analyse",
            train=self.folder / "train",
            arms=self.arm_list,
            manifests={},
            run_seconds={},
            chance=self._chance,
            knowledge=read_json(self._file("probe", KNOWLEDGE_FILE)),
            balance=self._file("construct", BALANCE_FILE),
            questions=self._file("questions", QUESTIONS_FILE),
        )
        return facts.Facts(self.config, sources)

    # Files.

    def _frame(self, make: Callable[["Run"], pd.DataFrame]) -> pd.DataFrame:
        if not self.variants:
            return make(self)
        return frames.joined([(name, make(run)) for name, run in self.variants.items()])

    def _file(self, stage: str, name: str) -> Path:
        """A file of a finished stage; ArtifactError names the command that makes it.

        Raises ArtifactError too if the file was changed after it was written.
        """
        path = self.folder / stage / name
        if path.is_file() and (path.parent / MANIFEST).is_file():
            integrity.check(path.parent, (name,))
            return path
        raise ArtifactError(f"{path}: does not exist yet; run `{self.command(stage)}`")

    def command(self, stage: str) -> str:
        """The command line that runs a stage of this run (`run` for all stages)."""
        if self.config_file is not None:
            return f"ift-scale {stage} {self.config_file}{self._variant_option}"
        moved = Path(self.config.output_dir).resolve() != self.folder.resolve()
        elsewhere = f" --set output_dir={self.folder}" if moved else ""
        return f"ift-scale {stage} {self.folder / 'config.yaml'}{elsewhere}"

    @property
    def _variant_option(self) -> str:
        return f" --variant {self.variant}" if self.variant else ""

    @cached_property
    def _question_file(self) -> QuestionFile:
        return QuestionFile(self._file("questions", "questions.jsonl"))

    @property
    def _edits(self) -> list[Edit]:
        """Changes on purpose of the run's artifacts."""
        stages = [self.folder / stage.name for stage in stages_of(self.config)]
        folders = [*stages, *(stage / arm.name for stage in stages for arm in self.arm_list)]
        return [edit for folder in folders if (m := read_manifest(folder)) for edit in m.edited]

    @cached_property
    def _chance(self) -> float:
        return self._question_file.chance_accuracy()

    def _by_arm(self, stage: str, file: str, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
        """The frames of the arms that are finished; ArtifactError if none is."""
        made = [arm for arm in self.arm_list if (self.folder / stage / arm.name / file).is_file()]
        finished = [arm for arm in made if read_manifest(self.folder / stage / arm.name)]
        if not finished:
            folder = self.folder / stage
            raise ArtifactError(f"{folder}: no arm is finished; run `{self.command(stage)}`")
        for arm in finished:
            integrity.check(self.folder / stage / arm.name, (file,))
        parts = ((arm, read(self.folder / stage / arm.name / file)) for arm in finished)
        return frames.of_arms(parts)


def _sets(run: Run) -> pd.DataFrame:
    trained = [arm for arm in run.arm_list if trained_arm(arm) == arm]
    paths = {arm: run._file("construct", f"{arm.name}.jsonl") for arm in trained}
    return frames.of_arms((arm, frames.example_rows(arm, path)) for arm, path in paths.items())


def _live(run: Run) -> pd.DataFrame:
    trained = set(run.metrics.arm)  # ArtifactError if there is none
    arms = [arm for arm in run.arm_list if arm.name in trained]
    for arm in arms:
        integrity.check(run.folder / "train" / arm.name, ("*.jsonl",))
    return frames.live(run.folder / "train", arms)


def _findings(run: Run) -> pd.DataFrame:
    rows = [vars(f) for found in findings.all_findings(run.facts).values() for f in found]
    return pd.DataFrame(rows, columns=["claim", "where", "verdict", "text"])
