"""The tables from scores whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from ift_scale.analyse.run import ArmScores, base_table, comparison_table, question_rows, setting_table
from ift_scale.config import AnalyseConfig
from ift_scale.records import Arm, Score

CONFIG = AnalyseConfig(bootstrap_samples=400)


def _scores(right: list[bool], num_choices: int = 4) -> list[Score]:
    """Questions whose answer is option 1, answered by it or by option 0."""
    scores = []
    for i, is_right in enumerate(right):
        logprobs = np.log(np.full(num_choices, 0.1) + 0.5 * (np.arange(num_choices) == (1 if is_right else 0)))
        probs = np.exp(logprobs) / np.exp(logprobs).sum()
        settings = {"domain": "d", "subject": "d", "collection": "pool", "split": "test", "answer": 1, "correct": is_right}
        known = {"logprobs": logprobs.tolist(), "probs": probs.tolist(), "letter_mass": float(np.exp(logprobs).sum())}
        scores.append(
            Score(question_id=f"q{i}", prediction=int(probs.argmax()), confidence=float(probs.max()), **settings, **known)
        )
    return scores


def _arm(setting: str, seed: int, right: list[bool]) -> ArmScores:
    return ArmScores(Arm(domain="d", setting=setting, seed=seed), {"HOMO": _scores(right)})


BASE = {s.question_id: s for s in _scores([True] * 40)}
BETTER, WORSE = [True] * 40, [i % 2 == 0 for i in range(40)]


def _rows() -> pd.DataFrame:
    arms = [_arm("harmonious", s, BETTER) for s in (0, 1)] + [_arm("incompatible", s, WORSE) for s in (0, 1)]
    return question_rows(arms, BASE)


def test_consistency_is_one_where_nothing_changed() -> None:
    rows = _rows()
    same = rows[rows.setting == "harmonious"]
    assert same.consistency.min() == pytest.approx(1) and same.kl.max() == pytest.approx(0)
    changed = rows[(rows.setting == "incompatible") & (rows.accuracy == 0)]
    assert changed.consistency.max() < 0 and changed.kl.min() > 0.5


def test_paired_difference() -> None:
    table = comparison_table(_rows(), CONFIG)
    assert len(table) == 1  # self-aligning was not run
    row = table.iloc[0]
    assert (row["first"], row["second"], row.questions, row.seeds) == ("harmonious", "incompatible", 40, 2)
    assert row.difference == pytest.approx(0.5) and row.difference_low > 0.3 and row.excludes_zero


def test_setting_means() -> None:
    table = setting_table(_rows(), CONFIG).set_index("setting")
    assert table.accuracy.to_dict() == {"harmonious": 1.0, "incompatible": 0.5}
    assert table.loc["incompatible"].accuracy_low < 0.5 < table.loc["incompatible"].accuracy_high


def test_base_table() -> None:
    row = base_table(_rows(), BASE, 0.95).iloc[0]
    assert row.accuracy == 1.0 and row.accuracy_low < 1.0 and row.questions == 40


def test_questions_with_different_numbers_of_options_go_together() -> None:
    mixed = _scores([True] * 5) + [s.model_copy(update={"question_id": "n" + s.question_id}) for s in _scores([True] * 5, 5)]
    rows = question_rows(
        [ArmScores(Arm(domain="d", setting="harmonious", seed=0), {"HOMO": mixed})], {s.question_id: s for s in mixed}
    )
    assert len(rows) == 10 and rows.consistency.min() == pytest.approx(1)
