"""McNemar, Holm and power against published values."""

import numpy as np
import pytest
from scipy import stats

from ift_scale.analyse.paired import Discordant, discordant, holm, majority, mcnemar
from ift_scale.analyse.power import detectable_by_error, detectable_difference, effective_questions


def test_mcnemar_published_examples() -> None:
    # Fagerland et al. 2013, table 1 (Bentur et al. 2009): 1 and 7 of 21 pairs, exact p = 0.0703.
    assert mcnemar(Discordant(1, 7, 21)) == pytest.approx(0.0703, abs=5e-5)
    # Agresti 2002, table 10.1: 150 and 86 of 1600, z = 4.17.
    assert mcnemar(Discordant(150, 86, 1600)) == pytest.approx(2 * stats.norm.sf(64 / 236**0.5))


@pytest.mark.parametrize(("first", "second"), [(3, 9), (12, 12), (0, 5)])
def test_mcnemar_is_the_binomial_test_of_what_differs(first: int, second: int) -> None:
    assert mcnemar(Discordant(first, second, 100)) == pytest.approx(
        stats.binomtest(first, first + second).pvalue
    )


def test_no_difference_is_no_evidence() -> None:
    assert mcnemar(Discordant(0, 0, 50)) == 1.0


def test_a_question_counts_once_by_its_majority() -> None:
    first = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, np.nan]])
    second = np.array([[0, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 0]])
    assert majority(first).tolist() == [1, 1, 0, 1]
    found = discordant(first, second)
    assert (found.first, found.second, found.pairs) == (2, 1, 4)
    tied = discordant(
        first[:2], second[:2]
    )  # the second question ties in the first setting, two in the second
    assert (tied.first, tied.second, tied.pairs) == (1, 0, 1)


def test_holm_published_example() -> None:
    # Wikipedia's example after Holm 1979: 0.01, 0.04, 0.03, 0.005.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("pairs", "only_first", "only_second"),
    # Connor 1987's formula, as two public calculators give it: 155 and 23 pairs are needed at power 0.8.
    [(155, 0.30, 0.15), (23, 0.45, 0.05)],
)
def test_detectable_difference_published_examples(
    pairs: int, only_first: float, only_second: float
) -> None:
    def detectable(questions: int) -> float:
        found = detectable_difference(questions, only_first + only_second, 0.95)
        assert found is not None
        return found

    assert detectable(pairs) <= only_first - only_second < detectable(pairs - 1)


def test_power_by_simulation() -> None:
    """The detectable difference is found about four times of five."""
    found = detectable_difference(250, 0.4, 0.95)
    assert found is not None
    rng = np.random.default_rng(0)
    counts = rng.multinomial(250, [0.2 + found / 2, 0.2 - found / 2, 0.6], size=1000)
    shown = np.mean([mcnemar(Discordant(int(b), int(c), 250)) < 0.05 for b, c, _ in counts])
    assert shown == pytest.approx(0.8, abs=0.04)


def test_too_few_questions_can_show_nothing() -> None:
    assert (
        detectable_difference(20, 0.05, 0.95) is None
        and detectable_difference(100, 0.0, 0.95) is None
    )


def test_seeds_are_worth_less_than_questions() -> None:
    assert effective_questions(250, 3, 1.0) == 250 and effective_questions(250, 3, 0.0) == 750
    one, three, independent = (
        detectable_difference(250, 0.3, 0.95, seeds=s, correlation=c)
        for s, c in ((1, 1), (3, 0.5), (3, 0))
    )
    assert one and three and independent and one > three > independent
    assert independent == detectable_difference(750, 0.3, 0.95)


def test_detectable_by_error() -> None:
    half_width = stats.norm.ppf(0.975)
    assert detectable_by_error(half_width, 1.0) == pytest.approx(
        2.80, abs=0.005
    )  # Bloom 1995: 2.8 standard errors
