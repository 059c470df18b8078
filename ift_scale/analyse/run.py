"""The analyse stage: probe and evaluation scores in, CSV tables out.

- arms, settings, base: accuracy, rank correlation, KL and agreement with the base model.
- comparisons: paired differences of two settings, with intervals, tests and power.
- transitions, grades: right and wrong before and after; accuracy by prior knowledge.
- correlation, correlation_points, best_ratio: mixtures of self-aligning and incompatible.
- abstention, generated: generated answers, if requested.
- dose: what each arm acquired and forgot, by set size, epoch and share of the update.
- measures: letters, option texts and free answers on the same questions, with cloze.
- format_content, forgetting, forgetting_fit: the effect of the prompt and that of training, with
  the base model's 0-shot answers only (`evaluate.base`).
- learnt, learnt_points, learnt_curve, learnt_items.parquet: the training items asked again, with
  the learnt stage only.
- hidden, hidden_layers: what probes decode from hidden states, with the hidden stage only.
- examples.jsonl: the questions whose answers changed most.

A table without content has its columns and no row. Undefined values are empty, and the row's
`reason` explains them.
"""

import time
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import pyarrow as pa

from ift_scale.analyse.answers import (
    Answers,
    ArmScores,
    answers_of,
    read_scores,
    split_by_group,
)
from ift_scale.analyse.comparisons import comparison_table
from ift_scale.analyse.dose import dose_table
from ift_scale.analyse.examples import as_lines, examples
from ift_scale.analyse.forgetting import forgetting_tables
from ift_scale.analyse.format_content import format_content_table, parts_of
from ift_scale.analyse.generated import abstention_table, generated_table
from ift_scale.analyse.grades import grade_table
from ift_scale.analyse.hidden import ProbedModel, hidden_tables, read_probed
from ift_scale.analyse.learnt import LearntAnswers, learnt_tables, read_learnt, with_grades
from ift_scale.analyse.means import arm_table, base_table, setting_table
from ift_scale.analyse.measures import MeasureTally, same_questions
from ift_scale.analyse.panel import panels_of
from ift_scale.analyse.ratios import best_ratio_table, correlation_table, point_table
from ift_scale.analyse.transitions import transition_table
from ift_scale.config import Config
from ift_scale.io import integrity
from ift_scale.io.files import atomic_folder
from ift_scale.io.manifests import digest_of
from ift_scale.io.progress import Bar
from ift_scale.io.tables import write_csv
from ift_scale.records import (
    FEW_SHOT,
    LAYERS_FILE,
    LEARNT_FILE,
    PROBE_FILE,
    PROBED_FILE,
    QUESTIONS_FILE,
    SCORES_FILE,
    Arm,
)
from ift_scale.stage import Context, Stage, Task

TABLES = tuple(
    "arms settings comparisons base transitions grades correlation_points correlation best_ratio "
    "abstention generated dose measures".split()
)
OPTIONAL_TABLES = tuple(
    "learnt learnt_points learnt_curve hidden hidden_layers format_content forgetting "
    "forgetting_fit".split()
)
"""The tables of settings that are off by default."""
EXAMPLES = "examples.jsonl"
LEARNT_ITEMS = "learnt_items.parquet"
_OF_MODELS = {"learnt": (LEARNT_FILE,), "hidden": (PROBED_FILE, LAYERS_FILE)}
"""Of optional stages, the files of the base model and of each arm."""


class AnalyseStage(Stage):
    name = "analyse"
    reads = (
        f"questions/{QUESTIONS_FILE}",
        f"probe/{PROBE_FILE}",
        f"evaluate/{SCORES_FILE}",
        f"learnt/{LEARNT_FILE}",
        f"hidden/{PROBED_FILE}",
        f"hidden/{LAYERS_FILE}",
    )
    version = 10

    def tasks(self, context: Context) -> list[Task]:
        inputs = {"probe": context.digest("probe", PROBE_FILE)}
        for task in context.tasks("evaluate"):
            name = task.folder.name
            if task.arm is None or name != task.arm.name:
                name = f"evaluate/{name}/{SCORES_FILE}"
            inputs[name] = context.finished(task).files[SCORES_FILE]
        for stage, names in _OF_MODELS.items():
            for task in context.tasks(stage):
                files = context.finished(task).files
                place = f"{stage}/{task.folder.name}"
                inputs |= {f"{place}/{file}": files[file] for file in names}
        config = context.config
        settings = [config.analyse.model_dump(), config.construct.confidence_threshold]
        return self.single(context, digest_of([self.version, settings, inputs]), inputs)

    def total(self, context: Context, pending: Sequence[Task]) -> int:
        return len(TABLES)

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        by_text = bool(context.config.probe.of_arms.cloze)
        arms = (_arm_scores(context, arm, by_text) for arm in context.arms())
        base = read_scores(context.folder("probe") / PROBE_FILE, by_text)
        same = {}
        if by_text:
            questions = context.question_file()
            same = same_questions(questions.read(questions.select(lambda g: g.split == "test")))
        folders = {
            stage: {task.folder.name: task.folder for task in context.tasks(stage)}
            for stage in _OF_MODELS
        }
        for folder in (f for of_stage in folders.values() for f in of_stage.values()):
            integrity.check(folder)  # the base model's is no arm's
        probed = {name: read_probed(folder) for name, folder in folders["hidden"].items()}
        zero_shot = None
        if context.config.evaluate.base:
            folder = context.folder_of("evaluate", None)
            integrity.check(folder)
            zero_shot = read_scores(folder / SCORES_FILE, by_text)
        learnt = None
        if folders["learnt"]:
            trained = read_scores(context.folder("probe") / PROBE_FILE, split="train")
            learnt = read_learnt(folders["learnt"], context.arms(), trained)
        compute(context.config, pending[0], arms, base, bar, same, probed, zero_shot, learnt)


def _arm_scores(context: Context, arm: Arm, by_text: bool) -> ArmScores:
    scores = read_scores(context.folder("evaluate", arm) / SCORES_FILE, by_text)
    few_shot = None
    if context.config.evaluate.few_shot:
        folder = context.folder("evaluate", arm)
        folder = folder.with_name(folder.name + FEW_SHOT)
        integrity.check(folder)
        few_shot = read_scores(folder / SCORES_FILE, by_text)
    return ArmScores(arm, split_by_group(scores, arm.test_group), few_shot)


def compute(
    config: Config,
    task: Task,
    arms: Iterable[ArmScores],
    base: pa.Table,
    bar: Bar,
    same: Mapping[str, str] | None = None,
    probed: Mapping[str, ProbedModel] | None = None,
    zero_shot: pa.Table | None = None,
    learnt: LearntAnswers | None = None,
) -> None:
    """Writes the tables.

    `arms` is iterated once and may be lazy. `base` are the probe's rows. `same`: free questions and
    the choice questions with the same text, for `measures`. `probed`: the hidden stage's tables by
    model, if it was run. `zero_shot`: the base model's answers in the prompts of the arms.
    `learnt`: the learnt stage's answers, if it was run.
    """
    started = time.monotonic()
    bar.note("reading scores")
    settings, threshold = config.analyse, config.construct.confidence_threshold
    level = settings.confidence_level
    tally = MeasureTally(base, same or {})
    asked = None if zero_shot is None else answers_of(zero_shot)

    def parts(few_shot: Answers, after: Answers, prompted: Answers | None) -> pd.DataFrame:
        assert asked is not None
        return parts_of(few_shot, asked.of(after.columns.index), after, prompted)

    panels = panels_of(tally.watching(arms), answers_of(base), None if asked is None else parts)
    points = point_table(panels)
    steps = {
        "arms": lambda: arm_table(panels, level),
        "settings": lambda: setting_table(panels, level),
        "comparisons": lambda: comparison_table(panels, level),
        "base": lambda: base_table(panels, level),
        "transitions": lambda: transition_table(panels),
        "grades": lambda: grade_table(panels, threshold, level),
        "correlation_points": lambda: points,
        "correlation": lambda: correlation_table(points, settings, len(panels.single_domains)),
        "best_ratio": lambda: best_ratio_table(panels, level),
        "abstention": lambda: abstention_table(panels, threshold, level),
        "generated": lambda: generated_table(panels),
        "dose": lambda: dose_table(panels, level),
        "measures": tally.table,
    }
    with atomic_folder(task.folder) as temporary:
        for name in TABLES:
            bar.note(name)
            write_csv(steps[name](), temporary / f"{name}.csv")
            bar.advance()
        optional = hidden_tables(panels, probed, level) if probed else {}
        if asked is not None:
            optional |= {"format_content": format_content_table(panels, level)}
            optional |= forgetting_tables(panels, level)
        if learnt:
            optional |= learnt_tables(learnt, panels, threshold, level)
            items = with_grades(learnt, threshold)
            items.to_parquet(temporary / LEARNT_ITEMS, index=False)
        for name, table in optional.items():
            write_csv(table, temporary / f"{name}.csv")
        (temporary / EXAMPLES).write_text(as_lines(examples(panels)), encoding="utf-8")
        counts: dict[str, float] = {
            "arms": len({arm.name for panel in panels for arm in panel.arms})
        }
        counts["answers"] = sum(panel.values["accuracy"].size for panel in panels)
        seconds = {"total": time.monotonic() - started}
        task.close(settings.model_dump(), counts, seconds, temporary)


STAGE = AnalyseStage()
