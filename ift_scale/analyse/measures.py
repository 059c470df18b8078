"""measures.csv: letters, option texts and free answers on the same questions, before and after.

A model may know an answer by one measure and not by another. Each row compares two measures of one
model on the questions that both asked: the accuracies, and Cohen's kappa of being right (Cohen
1960), which is 0 for measures that agree as often as by chance and 1 if they always agree. A free
question is the same as a choice question of its domain with the same text.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ift_scale.analyse.answers import ArmScores
from ift_scale.analyse.panel import groups_in_order
from ift_scale.records import Question
from ift_scale.treatments import BASE, in_order

MEASURES = ("letters", "cloze", "free")
COLUMNS = "model group first second questions answers first_accuracy second_accuracy kappa".split()
_FREE = " free"


def same_questions(questions: Iterable[Question]) -> dict[str, str]:
    """Returns, by a free question's id, the id of the choice question with the same text."""
    choice: dict[tuple[str, str], str] = {}
    free: dict[str, tuple[str, str]] = {}
    for question in questions:
        key = (question.domain, " ".join(question.question.split()))
        if question.kind == "choice":
            choice[key] = question.id
        else:
            free[question.id] = key
    return {id: choice[key] for id, key in free.items() if key in choice}


class MeasureTally:
    """Counts right and wrong answers by measure, while the arms' scores are read once.

    `base`: the probe's rows. `same`: from `same_questions`.
    """

    def __init__(self, base: pa.Table, same: Mapping[str, str]):
        self._same = same
        self._base = _right(base, same)
        self._asked: dict[str, set[str]] = {}
        self._counts: dict[tuple[str, str, str, str], list[np.ndarray]] = {}

    def watching(self, arms: Iterable[ArmScores]) -> Iterator[ArmScores]:
        """Yields the arms, and counts their answers."""
        for scored in arms:
            groups: dict[str, list[pa.Table]] = {}
            for name, table in scored.groups.items():
                groups.setdefault(name.removesuffix(_FREE), []).append(table)
            for group, tables in groups.items():
                right = _right(pa.concat_tables(tables, promote_options="default"), self._same)
                self._add(scored.arm.setting, group, right)
                asked = self._asked.setdefault(group, set())
                asked.update(*(measure.index for measure in right.values()))
            yield scored

    def _add(self, model: str, group: str, right: Mapping[str, pd.Series]) -> None:
        for first, second in combinations(MEASURES, 2):
            if first in right and second in right:
                both = pd.concat([right[first], right[second]], axis=1, join="inner")
                if len(both):
                    key = (model, group, first, second)
                    self._counts.setdefault(key, []).append(both.to_numpy(dtype=float))

    def table(self) -> pd.DataFrame:
        """Returns the rows of COLUMNS: the base model's, then the settings'."""
        for group, asked in self._asked.items():
            self._add(BASE, group, {n: r[r.index.isin(asked)] for n, r in self._base.items()})
        models = in_order(sorted({key[0] for key in self._counts} - {BASE}))
        groups = groups_in_order(key[1] for key in self._counts)
        rows = [
            _row(key, self._counts[key])
            for model in [BASE, *models]
            for group in groups
            for first, second in combinations(MEASURES, 2)
            if (key := (model, group, first, second)) in self._counts
        ]
        return pd.DataFrame(rows, columns=COLUMNS)


def _row(key: tuple[str, str, str, str], counts: list[np.ndarray]) -> dict[str, Any]:
    """Pools the answers of a setting's arms."""
    right_N2 = np.concatenate(counts)
    values = (*key, max(map(len, counts)), len(right_N2), *right_N2.mean(0), kappa(right_N2))
    return dict(zip(COLUMNS, values, strict=True))


def kappa(right_N2: np.ndarray) -> float:
    """Returns Cohen's kappa of two columns of 0 and 1; NaN if chance alone makes them agree."""
    observed = (right_N2[:, 0] == right_N2[:, 1]).mean()
    p, q = right_N2.mean(0)
    expected = p * q + (1 - p) * (1 - q)
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


def _right(table: pa.Table, same: Mapping[str, str]) -> dict[str, pd.Series]:
    """Returns which questions each measure answers correctly, by the choice question's id."""
    if "cloze_prediction" not in table.column_names:
        return {}
    names = ["question_id", "kind", "answer", "logprobs", "cloze_prediction", "correct"]
    frame = table.select(names).to_pandas()
    choice, free = frame[frame.kind == "choice"], frame[frame.kind == "free"]
    choice = choice[choice.cloze_prediction.notna()]
    letters = [int(np.argmax(values)) for values in choice.logprobs]
    free = free.assign(same=free.question_id.map(same)).dropna(subset="same")
    found = {
        "letters": pd.Series(letters == choice.answer.to_numpy(), choice.question_id.to_numpy()),
        "cloze": pd.Series(
            (choice.cloze_prediction == choice.answer).to_numpy(), choice.question_id.to_numpy()
        ),
        "free": pd.Series(free.correct.to_numpy(dtype=bool), free.same.to_numpy()),
    }
    return {name: right for name, right in found.items() if len(right)}
