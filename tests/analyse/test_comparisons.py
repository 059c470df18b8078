"""Paired differences from scores whose answer is known."""

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
    assert (row["first"], row["second"], row.questions, row.seeds) == (
        "harmonious",
        "incompatible",
        40,
        2,
    )
    assert row.difference == pytest.approx(0.5) and row.difference_low > 0.3 and row.excludes_zero
    assert row.mcnemar_p == pytest.approx(2 * 0.5**20) and row.discordant == 0.5
    assert row.holm_p == row.p < 0.001
    assert 0 < row.detectable < 0.5 and 0 < row.detectable_mcnemar < 0.5 and row.reason == ""
    # These seeds answer alike, so other seeds add nothing to what other questions could change.
    assert (row.difference_low, row.difference_high) == pytest.approx(
        (row.questions_low, row.questions_high)
    )


def test_one_seed_has_no_interval_of_the_method() -> None:
    arms = [arm("harmonious", 0, choices(BETTER)), arm("incompatible", 0, choices(WORSE))]
    row = comparison_table(panels(arms, BASE), 0.95).iloc[0]
    assert (
        row.difference == 0.5
        and row[["difference_low", "difference_high", "p", "holm_p", "detectable"]].isna().all()
    )
    assert not row.excludes_zero and row.reason == "one seed: no interval over seeds"
    assert row.questions_low > 0.3 and row.mcnemar_p < 0.001  # about these very models


def test_a_missing_arm_leaves_its_domain_out_of_the_difference_alone() -> None:
    """S and H answer alike where both are; S lacks the domain `e`, where all are bad."""

    def of(setting: str, domain: str, right: list[bool]) -> list:
        return [arm(setting, seed, choices(right, domain), domain) for seed in (0, 1)]

    arms = [
        *of("harmonious", "d", BETTER),
        *of("harmonious", "e", [False] * 40),
        *of("self_aligning", "d", BETTER),
    ]
    table = comparison_table(panels(arms, [*choices(BETTER, "d"), *choices(BETTER, "e")]), 0.95)
    row = rows_of(table, domain="all").iloc[0]
    assert (row.difference, row.domains, row.of_domains, row.over, row.questions) == (
        0,
        1,
        2,
        "d",
        40,
    )


def test_pairs_share_their_seeds() -> None:
    arms = [arm("harmonious", s, choices(BETTER)) for s in (0, 1, 2)] + [
        arm("incompatible", s, choices(WORSE)) for s in (1, 2, 5)
    ]
    assert comparison_table(panels(arms, BASE), 0.95).seeds[0] == 2
    apart = [arm("harmonious", 0, choices(BETTER)), arm("incompatible", 1, choices(WORSE))]
    assert comparison_table(panels(apart, BASE), 0.95).empty


def test_no_question_that_differs_is_not_certainly_no_difference() -> None:
    arms = [
        arm(setting, seed, choices(WORSE))
        for setting in ("harmonious", "incompatible")
        for seed in (0, 1)
    ]
    row = comparison_table(panels(arms, BASE), 0.95).iloc[0]
    assert row.difference == 0 and not row.excludes_zero and row.mcnemar_p == row.p == 1
    assert (
        row.difference_low < -0.02
        and row.difference_high == -row.difference_low < row.detectable < 0.2
    )
    assert (
        row.reason
        == "no detectable difference of McNemar's test: too few majorities differ for any "
        "difference to reach this power"
    )


def test_tested_pairs() -> None:
    there = [
        "harmonious",
        "incompatible",
        "self_aligning",
        "contextualized",
        "natural",
        "open_book",
        "mixture-0.2",
        "unknown-0.5",
    ]
    assert pairs(there) == [
        ("harmonious", "incompatible"),
        ("self_aligning", "incompatible"),
        ("harmonious", "self_aligning"),
        ("contextualized", "incompatible"),
        ("natural", "incompatible"),
        ("open_book", "incompatible"),
        ("open_book", "natural"),
    ]


def test_sets_are_compared_with_their_general_instructions_alone() -> None:
    assert pairs(["general_only", "harmonious", "natural", "open_book"]) == [
        ("harmonious", "general_only"),
        ("natural", "general_only"),
        ("open_book", "natural"),
    ]


def test_facts_are_compared_with_their_form_alone() -> None:
    assert pairs(["general_only", "format_only", "incompatible", "natural", "only_wrong"]) == [
        ("incompatible", "general_only"),
        ("natural", "general_only"),
        ("incompatible", "format_only"),
        ("natural", "format_only"),
        ("format_only", "general_only"),
        ("natural", "incompatible"),
        ("only_wrong", "incompatible"),
        ("only_wrong", "natural"),
    ]


def test_own_sets_are_compared_with_each_other_in_their_order() -> None:
    assert pairs(["natural", "b", "c", "a"]) == [
        *((own, "natural") for own in ("b", "c", "a")),
        *(("b", "c"), ("b", "a"), ("c", "a")),
    ]
    names = [f"set{n}" for n in (3, 1, 4, 2, 0)]
    arms = [arm(name, 0, choices(WORSE)) for name in names]
    assert panels(arms, BASE).settings == names


def test_sets_of_known_and_unknown_questions_are_compared() -> None:
    assert pairs(["highly_known", "unknown", "unknown-0.5"]) == [("highly_known", "unknown")]


def test_holm_takes_the_rows_over_all_domains_and_the_others_as_two_families() -> None:
    arms = [
        arm(setting, seed, choices(right, prefix), domain)
        for domain, prefix in (("d", "q"), ("e", "p"))
        for seed in (0, 1, 2)
        for setting, right in (
            ("harmonious", BETTER),
            ("incompatible", WORSE),
            ("self_aligning", BETTER),
        )
    ]
    table = comparison_table(panels(arms, BASE + choices(BETTER, "p")), 0.95)
    single, whole = rows_of(table, domain="d"), rows_of(table, domain="all")
    assert single.holm_p.to_list() == pytest.approx(
        [6 * single.p.iloc[0], 6 * single.p.iloc[0], 1]
    )  # six rows
    assert whole.holm_p.to_list() == pytest.approx([3 * whole.p.iloc[0], 3 * whole.p.iloc[0], 1])
    assert whole.mcnemar_p.to_list() == pytest.approx(
        [chi2.sf(40, 1), chi2.sf(40, 1), 1]
    )  # forty questions differ, all one way
