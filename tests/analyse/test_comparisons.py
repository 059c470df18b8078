"""Paired differences from scores whose answer is known."""

import pandas as pd
import pytest
from scipy.stats import chi2

from ift_scale.analyse.comparisons import comparison_table, pairs
from tests.analyse.scores import BASE, BETTER, WORSE, arm, choices, panels, rows_of, two_settings


def test_questions_may_come_in_another_order() -> None:
    arms = [arm("harmonious", 0, choices(WORSE)), arm("incompatible", 0, choices(WORSE)[::-1])]
    assert comparison_table(panels(arms, BASE), 0.95).iloc[0].discordant == 0


def test_paired_difference() -> None:
    table = comparison_table(two_settings(), 0.95)
    assert len(table) == 1  # self-aligning was not run
    row = table.iloc[0]
    assert (row["first"], row["second"], row.questions, row.seeds) == ("harmonious", "incompatible", 40, 2)
    assert row.difference == pytest.approx(0.5) and row.difference_low > 0.3 and row.excludes_zero
    assert row.mcnemar_p == pytest.approx(2 * 0.5**20) and row.discordant == 0.5 and row.holm_p == row.mcnemar_p
    assert 0 < row.detectable < 0.5 and 0 < row.detectable_mcnemar < 0.5 and row.reason == ""
    assert row.difference_low <= row.questions_low < row.questions_high <= row.difference_high


def test_pairs_share_their_seeds() -> None:
    arms = [arm("harmonious", s, choices(BETTER)) for s in (0, 1, 2)] + [arm("incompatible", s, choices(WORSE)) for s in (1, 2, 5)]
    assert comparison_table(panels(arms, BASE), 0.95).seeds[0] == 2
    apart = [arm("harmonious", 0, choices(BETTER)), arm("incompatible", 1, choices(WORSE))]
    assert comparison_table(panels(apart, BASE), 0.95).empty


def test_what_never_differs_detects_nothing_and_says_so() -> None:
    arms = [arm(setting, 0, choices(WORSE)) for setting in ("harmonious", "incompatible")]
    row = comparison_table(panels(arms, BASE), 0.95).iloc[0]
    assert row.difference == 0 and not row.excludes_zero and row.mcnemar_p == 1 and pd.isna(row.detectable)
    assert row.reason.startswith("no detectable difference: ") and "McNemar" in row.reason


def test_tested_pairs() -> None:
    there = ["harmonious", "incompatible", "self_aligning", "contextualized", "natural", "open_book", "mixture-0.2", "unknown-0.5"]
    assert pairs(there) == [
        ("harmonious", "incompatible"),
        ("self_aligning", "incompatible"),
        ("harmonious", "self_aligning"),
        ("contextualized", "incompatible"),
        ("natural", "incompatible"),
        ("open_book", "incompatible"),
        ("open_book", "natural"),
    ]


def test_sets_of_known_and_unknown_questions_are_compared() -> None:
    assert pairs(["highly_known", "unknown", "unknown-0.5"]) == [("highly_known", "unknown")]


def test_holm_takes_the_rows_over_all_domains_and_the_others_as_two_families() -> None:
    arms = [
        arm(setting, 0, choices(right, prefix), domain)
        for domain, prefix in (("d", "q"), ("e", "p"))
        for setting, right in (("harmonious", BETTER), ("incompatible", WORSE), ("self_aligning", BETTER))
    ]
    table = comparison_table(panels(arms, BASE + choices(BETTER, "p")), 0.95)
    p = 2 * 0.5**20
    assert rows_of(table, domain="d").holm_p.to_list() == pytest.approx([6 * p, 6 * p, 1])  # six rows

    p = chi2.sf(40, 1)  # forty questions differ, all in one direction
    assert rows_of(table, domain="all").mcnemar_p.to_list() == pytest.approx([p, p, 1])
    assert rows_of(table, domain="all").holm_p.to_list() == pytest.approx([3 * p, 3 * p, 1])
