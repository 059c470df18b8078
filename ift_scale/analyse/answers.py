"""Reads a model's answers as columns: score files in, arrays out.

No Python object is created per row, because runs have millions of rows. Notation: Q questions of
one file or group, C the maximum number of options.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ift_scale.records import Arm, Score
from ift_scale.scoring.agreement import kl_divergence, rank_pearson

_NUMBERS = (
    "answer",
    "prediction",
    "generated_prediction",
    "confidence",
    "letter_mass",
    "correct",
    "refused",
)
_COLUMNS = ("question_id", "kind", "domain", "collection", "group", "probs", "grade", *_NUMBERS)
_SMALLEST = np.finfo(float).tiny


def read_scores(path: Path, by_text: bool = False, split: str = "test") -> pa.Table:
    """Reads the columns to analyse of a score file's questions of one split.

    `by_text`: the texts of options decide the predictions. Then also reads the answers by letter
    and by text, for `measures`.
    """
    there = set(pq.read_schema(path).names)
    columns = [name for name in _COLUMNS if name in there]
    columns += ["cloze_prediction", "logprobs"] if by_text else []
    return pq.read_table(path, columns=columns, filters=[("split", "=", split)])


def table_of(scores: Iterable[Score]) -> pa.Table:
    """Returns the same columns from scores in memory."""
    rows = [score.model_dump(include=set(_COLUMNS)) for score in scores]
    probs = pa.array([row.pop("probs") for row in rows], pa.list_(pa.float64()))
    return pa.Table.from_pylist(rows).append_column("probs", probs)


def split_by_group(
    table: pa.Table, name_of: Callable[[str, str, str | None], str | None]
) -> dict[str, pa.Table]:
    """Returns the rows of each test group.

    `name_of` maps a score's domain, collection and group to the name of its test group, or to None
    if it is not compared. Free questions form groups of their own, such as `HOMO free`: whether a
    text matches is a different measure from which letter is the most likely one.
    """
    rows: dict[tuple[str, str, str | None, str | None], list[int]] = {}
    columns = (_column(table, name) for name in ("domain", "collection", "group", "kind"))
    for row, key in enumerate(zip(*columns, strict=True)):
        rows.setdefault(key, []).append(row)
    parts: dict[str, list[int]] = {}
    for (domain, collection, group, kind), members in rows.items():
        name = name_of(domain, collection, group)
        if name is not None:
            parts.setdefault(f"{name} free" if kind == "free" else name, []).extend(members)
    return {name: table.take(sorted(members)) for name, members in parts.items()}


def _column(table: pa.Table, name: str) -> list:
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)


@dataclass(frozen=True)
class ArmScores:
    """One arm's evaluation: rows of its score file by group (HOMO, ID, OOD, a benchmark's own).

    `few_shot`: its answers in the prompts of the probe, of all groups, if it was asked.
    """

    arm: Arm
    groups: dict[str, pa.Table]
    few_shot: pa.Table | None = None


@dataclass(frozen=True)
class Answers:
    """Answers to Q questions.

    Attributes:
        columns: Q rows with index question_id; numbers are floats, NaN if missing.
        probs_QC: Option probabilities; NaN after a question's last option and for free questions.
    """

    columns: pd.DataFrame
    probs_QC: np.ndarray

    @property
    def num_choices(self) -> np.ndarray:
        return np.isfinite(self.probs_QC).sum(1)

    def of(self, questions: pd.Index) -> "Answers":
        """Returns the answers to these questions, in their order; NaN for those not asked."""
        found = self.columns.index.get_indexer(questions)
        probs = np.where(found[:, None] >= 0, self.probs_QC[found], np.nan)
        return Answers(self.columns.reindex(questions), probs)


def answers_of(table: pa.Table) -> Answers:
    """Converts a table of scores."""
    lists = table["probs"].combine_chunks()
    lengths = np.asarray(lists.value_lengths().fill_null(0))
    probs = np.full((len(table), max(lengths.max(initial=0), 1)), np.nan)
    probs[np.arange(probs.shape[1]) < lengths[:, None]] = np.asarray(lists.drop_null().flatten())
    index = pd.Index(table["question_id"].to_pylist(), name="question_id", dtype=object)
    columns = {name: _numbers(table, name) for name in _NUMBERS}
    words = {name: np.array(_column(table, name), dtype=object) for name in ("grade", "kind")}
    return Answers(pd.DataFrame(columns | words, index=index), probs)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names or pa.types.is_null(table[name].type):
        return np.full(len(table), np.nan)
    return table[name].cast(pa.float64()).to_numpy()


def compare(before: Answers, after: Answers) -> pd.DataFrame:
    """Returns the measures of Q questions, which both sides have in the same order.

    Columns (NaN if undefined for a question): accuracy (0 or 1); consistency, the correlation with
    the base model's ranks; kl, KL(base || arm) in nats; agreement (same prediction); letter_mass;
    prediction; confidence. For generated answers: refused; given (correctness of an answer that is
    no refusal); generated_accuracy; generated_agreement (same option as the letter prediction);
    unparsed.
    """
    options = np.where(before.num_choices == after.num_choices, after.num_choices, 0)
    consistency, kl = np.full((2, len(options)), np.nan)
    for num_choices in np.unique(options[options > 0]):
        rows = np.flatnonzero(options == num_choices)
        p_QC, q_QC = (answers.probs_QC[rows, :num_choices] for answers in (before, after))
        consistency[rows] = rank_pearson(p_QC, q_QC)
        # Clamped: an option whose probability underflows must not make a mean infinite.
        kl[rows] = kl_divergence(p_QC, np.maximum(q_QC, _SMALLEST))
    b, a = before.columns, after.columns
    measures = {
        "accuracy": a.correct,
        "consistency": consistency,
        "kl": kl,
        "agreement": _same(b.prediction, a.prediction),
        "letter_mass": a.letter_mass,
        "prediction": a.prediction,
        "confidence": a.confidence,
    }
    return pd.DataFrame(measures | _generated(a), index=a.index)


def _same(first: pd.Series, second: pd.Series) -> np.ndarray:
    """1 if equal, else 0; NaN if either is missing."""
    return np.where(first.isna() | second.isna(), np.nan, (first == second).astype(float))


def _generated(answers: pd.DataFrame) -> dict[str, np.ndarray]:
    """A free question has only its generated answer: `given` is `correct`, the rest is NaN."""
    asked, refused = answers.refused.notna(), answers.refused == 1
    choice = asked & (answers.kind != "free")
    named = answers.generated_prediction.notna()
    right = np.where(
        choice, answers.generated_prediction == answers.answer, answers.correct == 1
    ).astype(float)
    return {
        "refused": answers.refused.to_numpy(),
        "given": np.where(asked & ~refused, right, np.nan),
        "generated_accuracy": np.where(choice, right * ~refused, np.nan),
        "generated_agreement": np.where(
            choice, (answers.generated_prediction == answers.prediction).astype(float), np.nan
        ),
        "unparsed": np.where(choice, (~named & ~refused).astype(float), np.nan),
    }
