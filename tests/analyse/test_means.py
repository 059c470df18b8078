"""arms.csv, settings.csv and base.csv from scores whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from ift_scale.analyse.means import arm_table, base_table, setting_table
from ift_scale.analyse.panel import groups_in_order
from tests.analyse.scores import (
    BASE,
    BETTER,
    WORSE,
    arm,
    choices,
    free,
    panels,
    rows_of,
    two_settings,
)


def test_arm_table() -> None:
    table = arm_table(two_settings(), 0.95)
    assert len(table) == 4 and (table.questions == 40).all() and (table.letter_mass == 1).all()
    worse = rows_of(table, setting="incompatible").iloc[0]
    assert (
        worse.accuracy == worse.agreement == 0.5 and worse.accuracy_low < 0.5 < worse.accuracy_high
    )


def test_setting_means() -> None:
    table = setting_table(two_settings(), 0.95).set_index("setting")
    assert table.accuracy.to_dict() == {"harmonious": 1.0, "incompatible": 0.5}
    assert table.loc["incompatible"].accuracy_low < 0.5 < table.loc["incompatible"].accuracy_high
    assert table.loc["harmonious"].accuracy_low < 1  # nothing varies, and still it is not certain
    assert table.loc["incompatible"].ratio == 0 and np.isnan(table.loc["harmonious"].ratio)


def test_all_domains_is_their_mean_and_settings_are_in_order() -> None:
    arms = [
        arm("mixture-0.2", 0, choices(WORSE)),
        arm("mixture-0.2", 0, choices([True] * 10, "p"), "e"),
    ]
    arms += [
        arm("harmonious", 0, choices(BETTER)),
        arm("harmonious", 0, choices([True] * 10, "p"), "pooled"),
    ]
    table = setting_table(panels(arms, [*BASE, *choices([True] * 10, "p")]), 0.95)
    assert list(dict.fromkeys(table.setting)) == ["harmonious", "mixture-0.2"]
    overall = rows_of(table, domain="all").set_index("setting")
    assert overall.accuracy.to_dict() == {"harmonious": 1.0, "mixture-0.2": 0.75}
    assert overall.questions.to_dict() == {
        "harmonious": 40,
        "mixture-0.2": 50,
    }  # arms across domains are no domain more


def test_means_that_can_be_compared_are_over_the_domains_that_every_setting_has() -> None:
    """H has a bad domain more than S, and is the same where both are: its mean over its own domains is lower all the same."""
    arms = [arm("harmonious", s, choices(BETTER, "d")) for s in (0, 1)] + [
        arm("self_aligning", s, choices(BETTER, "d")) for s in (0, 1)
    ]
    arms += [arm("harmonious", s, choices([False] * 40, "e"), "e") for s in (0, 1)]
    table = setting_table(panels(arms, [*choices(BETTER, "d"), *choices(BETTER, "e")]), 0.95)
    whole, shared = (rows_of(table, domain=name).set_index("setting") for name in ("all", "shared"))
    assert whole.accuracy.to_dict() == {"harmonious": 0.5, "self_aligning": 1.0}
    assert (
        whole.domains.to_dict() == {"harmonious": 2, "self_aligning": 1}
        and (whole.of_domains == 2).all()
    )
    assert (
        shared.accuracy.to_dict() == {"harmonious": 1.0, "self_aligning": 1.0}
        and (shared.over == "d").all()
    )
    assert rows_of(setting_table(two_settings(), 0.95), domain="shared").empty  # nothing is missing


def test_one_seed_has_intervals_over_questions_and_says_so() -> None:
    one, two = (
        setting_table(
            panels([arm("harmonious", s, choices(WORSE)) for s in seeds], BASE), 0.95
        ).iloc[0]
        for seeds in ([0], [0, 1])
    )
    assert one.interval_over == "questions" and one.accuracy_low < 0.5 < one.accuracy_high
    assert two.interval_over == "seeds and questions"


def test_base_table() -> None:
    row = base_table(two_settings(), 0.95).iloc[0]
    assert (
        row.accuracy == 1.0
        and row.accuracy_low < 1.0
        and row.questions == 40
        and row.confidence == pytest.approx(0.6)
    )


def test_questions_with_different_numbers_of_options_go_together() -> None:
    mixed = choices([True] * 5) + choices([True] * 5, "n", num_choices=5)
    table = arm_table(panels([arm("harmonious", 0, mixed)], mixed), 0.95)
    assert table.questions[0] == 10 and table.consistency[0] == pytest.approx(1)


def test_free_questions_count_for_accuracy_alone() -> None:
    mixed = choices([True, False]) + [free(f"f{i}", i < 3) for i in range(4)]
    found = panels([arm("harmonious", 0, mixed)], mixed)
    row = arm_table(found, 0.95).iloc[0]
    assert (
        row.accuracy == pytest.approx(4 / 6)
        and row.consistency == pytest.approx(1)
        and row.agreement == 1
    )
    assert setting_table(found, 0.95).kl[0] == pytest.approx(0)
    only = panels([arm("harmonious", 0, mixed[2:])], mixed)
    table = setting_table(only, 0.95).iloc[0]
    assert (
        table.accuracy == 0.75
        and pd.isna(table.consistency)
        and "no options" in table.reason
        and pd.isna(arm_table(only, 0.95).kl[0])
    )


def test_groups_in_order() -> None:
    assert groups_in_order(["truthful", "OOD", "HOMO", "arc"]) == ["HOMO", "OOD", "truthful", "arc"]
    assert groups_in_order(["OOD free", "OOD", "HOMO free"]) == ["OOD", "HOMO free", "OOD free"]
