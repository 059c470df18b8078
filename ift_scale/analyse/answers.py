"""What a model answered, column by column: score files in, arrays out. No record is made of a row: runs have millions.

Q questions of one file or group; C, the most options that one of them has.
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


def read_scores(path: Path) -> pa.Table:
    """The columns of a score file that are analysed, of its test questions: no others are compared."""
    there = set(pq.read_schema(path).names)
    return pq.read_table(
        path, columns=[name for name in _COLUMNS if name in there], filters=[("split", "=", "test")]
    )


def table_of(scores: Iterable[Score]) -> pa.Table:
    """The same of scores that are at hand."""
    rows = [score.model_dump(include=set(_COLUMNS)) for score in scores]
    probs = pa.array([row.pop("probs") for row in rows], pa.list_(pa.float64()))
    return pa.Table.from_pylist(rows).append_column("probs", probs)


def split_by_group(
    table: pa.Table, name_of: Callable[[str, str, str | None], str | None]
) -> dict[str, pa.Table]:
    """The rows of each test group; `name_of` names it by a score's domain, collection and group, None for what is not compared.

    A group's free questions are one of their own, `HOMO free` for example: whether a text matches is another measure than which of
    four letters is the likeliest, and a mean over both would be neither.
    """
    rows: dict[tuple[str, str, str | None, str | None], list[int]] = {}
    for row, place in enumerate(
        zip(
            *(_column(table, name) for name in ("domain", "collection", "group", "kind")),
            strict=True,
        )
    ):
        rows.setdefault(place, []).append(row)
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
    """One arm's evaluation, beside its group names (HOMO, ID, OOD, a benchmark's own): rows of its score file."""

    arm: Arm
    groups: dict[str, pa.Table]


@dataclass(frozen=True)
class Answers:
    """`columns`: a frame of Q rows with the index question_id, numbers as float with NaN where there is none; `probs_QC`, NaN
    behind a question's own options and everywhere in a free question."""

    columns: pd.DataFrame
    probs_QC: np.ndarray

    @property
    def num_choices(self) -> np.ndarray:
        return np.isfinite(self.probs_QC).sum(1)

    def of(self, questions: pd.Index) -> "Answers":
        """The answers to these questions, in their order; all missing where one was not asked."""
        found = self.columns.index.get_indexer(questions)
        probs = np.where(found[:, None] >= 0, self.probs_QC[found], np.nan)
        return Answers(self.columns.reindex(questions), probs)


def answers_of(table: pa.Table) -> Answers:
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
    """Measures of each of the Q questions that both have in the same order, NaN where a question has none of a measure.

    accuracy (0 or 1); consistency with the base model's ranks; kl, KL(base || arm) in nats; agreement (the same prediction);
    letter_mass. Of generated answers: refused, given (right or not, where one is given), unparsed, generated_agreement (of the
    generated option and the letter's).
    """
    options = np.where(before.num_choices == after.num_choices, after.num_choices, 0)
    consistency, kl = np.full((2, len(options)), np.nan)
    for num_choices in np.unique(options[options > 0]):
        rows = np.flatnonzero(options == num_choices)
        p_QC, q_QC = (answers.probs_QC[rows, :num_choices] for answers in (before, after))
        consistency[rows] = rank_pearson(p_QC, q_QC)
        kl[rows] = kl_divergence(
            p_QC, np.maximum(q_QC, _SMALLEST)
        )  # an option that underflows must not make a mean infinite
    b, a = before.columns, after.columns
    found = {
        "accuracy": a.correct,
        "consistency": consistency,
        "kl": kl,
        "agreement": _same(b.prediction, a.prediction),
        "letter_mass": a.letter_mass,
        "prediction": a.prediction,
        "confidence": a.confidence,
    }
    return pd.DataFrame(found | _generated(a), index=a.index)


def _same(first: pd.Series, second: pd.Series) -> np.ndarray:
    """1 or 0; NaN where one of them is not there."""
    return np.where(first.isna() | second.isna(), np.nan, (first == second).astype(float))


def _generated(answers: pd.DataFrame) -> dict[str, np.ndarray]:
    """Of a free question the generated answer is the only one: `given` is its `correct`, and there is nothing to agree with."""
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
