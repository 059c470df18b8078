"""Format and content, and forgetting against KL, on planted answers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ift_scale.analyse import forgetting
from ift_scale.analyse.answers import Answers, ArmScores, answers_of, table_of
from ift_scale.analyse.format_content import format_content_table, parts_of
from ift_scale.analyse.panel import Panels, panels_of
from ift_scale.records import Score
from tests.analyse.scores import arm, choices

NUM = 60
ALL = [True] * NUM
MOST, HALF = [n % 4 > 0 for n in range(NUM)], [n % 2 > 0 for n in range(NUM)]


def _panels(
    arms: Sequence[ArmScores], few_shot: Sequence[Score], zero_shot: Sequence[Score]
) -> Panels:
    asked = answers_of(table_of(zero_shot))

    def parts(before: Answers, after: Answers, prompted: Answers | None) -> pd.DataFrame:
        return parts_of(before, asked.of(after.columns.index), after, prompted)

    return panels_of(iter(arms), answers_of(table_of(few_shot)), parts)


def test_the_changes_of_accuracy_add_up() -> None:
    """Few-shot all right, 0-shot three quarters, after training half of these and others."""
    arms = [arm("natural", seed, choices(HALF)) for seed in (0, 1)]
    table = format_content_table(_panels(arms, choices(ALL), choices(MOST)), 0.95)
    (row,) = table.to_dict("records")
    accuracies = (row["few_shot_accuracy"], row["zero_shot_accuracy"], row["accuracy"])
    assert accuracies == (1, 0.75, 0.5)
    assert (row["format_change"], row["content_change"], row["total_change"]) == (
        -0.25,
        -0.25,
        -0.5,
    )
    for part in ("format", "content", "total"):
        assert row[f"{part}_change_low"] <= row[f"{part}_change"] <= row[f"{part}_change_high"] < 0
    assert row["format_agreement"] == 0.75
    # MOST and HALF differ in questions 2, 6, ...: a quarter of them.
    assert row["content_agreement"] == 0.75 and row["content_kl"] == row["format_kl"] > 0
    assert row["total_consistency"] < row["content_consistency"] < 1


def test_training_that_changes_nothing_has_no_content() -> None:
    (row,) = format_content_table(
        _panels([arm("natural", 0, choices(MOST))], choices(ALL), choices(MOST)), 0.95
    ).to_dict("records")
    assert row["content_change"] == row["content_kl"] == 0 and row["content_consistency"] == 1
    assert row["format_change"] == row["total_change"] == -0.25
    assert row["seeds"] == 1 and row["format_change_high"] < 0  # over questions


def test_an_arm_few_shot_is_compared_with_the_base_model_few_shot() -> None:
    """Few-shot nothing is lost, although 0-shot half is."""
    arms = [arm("natural", s, choices(HALF)) for s in (0, 1)]
    asked = [replace(one, few_shot=table_of(choices(ALL)[::-1])) for one in arms]
    (row,) = format_content_table(_panels(asked, choices(ALL), choices(MOST)), 0.95).to_dict(
        "records"
    )
    assert row["content_few_shot_change"] == row["content_few_shot_kl"] == 0
    assert row["content_few_shot_consistency"] == 1 and row["total_change"] == -0.5
    (row,) = format_content_table(_panels(arms, choices(ALL), choices(MOST)), 0.95).to_dict(
        "records"
    )
    assert "content_few_shot_change" not in row


def test_a_question_that_only_the_arm_was_asked_has_no_parts() -> None:
    arms = [arm("natural", 0, [*choices(HALF), *choices(ALL, prefix="new")])]
    (row,) = format_content_table(_panels(arms, choices(ALL), choices(MOST)), 0.95).to_dict(
        "records"
    )
    assert row["content_change"] == -0.25 and row["zero_shot_accuracy"] == 0.75


def test_points_are_each_arms_own_and_other_questions() -> None:
    own, other = choices(ALL, prefix="own"), choices(ALL, prefix="other")
    after_own, after_other = choices(ALL, prefix="own", sure=0.8), choices(HALF, prefix="other")
    evaluated = arm("natural", 3, after_own)
    evaluated.groups["OOD"] = table_of(after_other)
    panels = _panels([evaluated], [*own, *other], [*own, *other])
    (row,) = forgetting.point_table(panels).to_dict("records")
    assert (row["domain"], row["setting"], row["seed"]) == ("d", "natural", 3)
    assert row["forgotten"] == 0.5
    assert row["kl_own"] == pytest.approx(0.6 * np.log(0.6 / 0.8) + 0.4 * np.log(0.4 / 0.2))
    # Half of the questions swap 0.6 and 0.4 / 3.
    swapped = (0.6 - 0.4 / 3) * np.log(0.6 / (0.4 / 3))
    assert row["kl_other"] == pytest.approx(swapped / 2)


def _points(slope: float, domains: int, noise: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    rows = []
    for domain in range(domains):
        for seed in range(12):
            kl = float(rng.uniform(0.1, 1)) + domain / 4
            forgotten = slope * kl - domain / 3 + noise * float(rng.normal())
            row = {"domain": f"d{domain}", "setting": "natural", "seed": seed}
            rows.append(row | {"kl_own": kl, "kl_other": kl / 2, "forgotten": forgotten})
    return pd.DataFrame(rows)


def test_the_slope_is_within_domains() -> None:
    """Domains differ against the slope: a line through all points would fall."""
    table = forgetting.fit_table(_points(0.2, 4, noise=0.01), 0.95).set_index("measure")
    own, other = table.loc["kl_own"], table.loc["kl_other"]
    assert own.slope_low < 0.2 < own.slope_high < 0.3 and own.slope == pytest.approx(0.2, abs=0.02)
    assert other.slope == pytest.approx(2 * own.slope) and own.arms == 48 and own.domains == 4
    assert 0 <= own.r_squared <= own.r_squared_quadratic <= 1


def test_intervals_cover_the_slope_at_their_level() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        points = _points(0.2, 4).assign(
            forgotten=lambda p: p.forgotten + rng.normal(0, 0.1, len(p))
        )
        row = forgetting.fit_table(points, 0.9).iloc[0]
        covered += row.slope_low <= 0.2 <= row.slope_high
    assert covered / 60 > 0.78


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (_points(0.2, 1), "no interval: d0 is the only domain"),
        (_points(0.2, 2).groupby("domain").head(2), "d0, d1 has fewer than 3 arms"),
        (_points(0.0, 2).assign(forgotten=0.1), "every arm forgets the same"),
    ],
)
def test_what_has_no_interval_has_a_reason(points: pd.DataFrame, reason: str) -> None:
    row = forgetting.fit_table(points, 0.95).iloc[0]
    assert reason in row.reason and pd.isna(row.slope_low)


def test_no_arms_no_lines() -> None:
    points = _points(0.2, 1).iloc[:0]
    assert len(forgetting.fit_table(points, 0.95)) == 0
