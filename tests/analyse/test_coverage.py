"""Simulations with fixed seeds: interval coverage, and how often verdicts are wrong.

The large simulation is benchmarks/simulate_intervals.py (results/intervals.json)."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks.simulate_intervals import Case, simulate
from benchmarks.suite.registry import results_folder
from ift_scale.analyse.estimates import DomainValues, estimate
from ift_scale.analyse.intervals import CORRELATION, SHARE, UNBOUNDED, Measure

TRIALS = 300
NOISE = 2.5 * (0.05 * 0.95 / TRIALS) ** 0.5


@pytest.mark.parametrize(
    "case",
    [
        Case(seeds=2, questions=100, seed_sd=0.05),
        Case(seeds=3, questions=100, accuracy=0.1),
        Case(seeds=5, questions=100, seed_sd=0.05, own=0.0),
        Case(4, 3, 60, seed_sd=0.05, common=1.0),
        Case(2, 3, 60, seed_sd=0.05, same_seeds=False),
    ],
)
def test_no_effect_is_seldom_called_one(case: Case) -> None:
    found = simulate(case, TRIALS)
    assert found["covered"] >= 0.94 - NOISE and found["mean_covered"] >= 0.94 - NOISE
    assert found["holds"] + found["does not hold"] <= 0.06 + NOISE


def test_one_seed_never_shows_anything() -> None:
    found = simulate(Case(seeds=1, seed_sd=0.05), TRIALS)
    assert found["holds"] == found["does not hold"] == 0 and found["covered"] is None
    # What the interval over questions and McNemar's test together would have called an effect.
    assert found["models"] > 0.25


def test_an_effect_is_found() -> None:
    assert simulate(Case(4, 3, seed_sd=0.02, difference=0.1), 40)["holds"] > 0.85
    assert simulate(Case(seeds=5, seed_sd=0.02, difference=0.1), 40)["holds"] > 0.85


def _stored(label: str) -> pd.DataFrame:
    path = results_folder() / "intervals.json"
    runs = json.loads(path.read_text())["rows"] if path.is_file() else {}
    if label not in runs:
        pytest.skip(f"not stored: python -m benchmarks.simulate_intervals --label {label}")
    return pd.DataFrame(runs[label]["rows"])


def test_the_stored_intervals_cover() -> None:
    """With three seeds or more; 1,000 trials have a standard error of 0.7 points at 95%."""
    found = _stored("now").query("seeds >= 3")
    for column in ("covered", "mean_covered"):
        assert found[column].min() > 0.93 - 0.014 and found[column].mean() > 0.95
    null = found[found.difference == 0]
    assert (null.holds + null["does not hold"]).max() < 0.07 + 0.014


def test_the_stored_intervals_are_narrower_than_their_predecessors() -> None:
    now, before = _stored("now"), _stored("before")
    assert (now.drop(columns=now.columns[10:]) == before.drop(columns=now.columns[10:])).all(
        axis=None
    )
    several = now.seeds > 1
    assert (now.half_width / before.half_width)[several].mean() < 0.95
    assert now.holds[several].mean() >= before.holds[several].mean()


def test_the_stored_correlations_are_seldom_found_without_a_relation() -> None:
    found = _stored("points")
    null = found[(found.slope == 0) & (found.slope_sd == 0)]
    assert null.verdict.max() < 0.07 + 0.014


def _covered(
    sizes: list[int],
    chances: list[float],
    seeds: int,
    seed_sd: float = 0.0,
    trials: int = 250,
    measure: Measure = SHARE,
) -> tuple[float, int]:
    """Returns (share of intervals that contain the true mean, number of intervals)."""
    rng, held = np.random.default_rng(0), []
    truth = float(np.mean(chances))
    for _ in range(trials):
        tables, start = [], 0
        for size, chance in zip(sizes, chances, strict=True):
            own = rng.random((seeds, size)) < 0.3
            drawn = np.where(own, rng.random((seeds, size)), rng.random(size))
            right_SQ = drawn < chance + seed_sd * rng.standard_normal((seeds, 1))
            tables.append(
                DomainValues(
                    right_SQ.astype(float), np.arange(start, start := start + size), range(seeds)
                )
            )
        made = estimate(tables, measure)
        assert made is not None
        if (shown := made.shown(0.95)) is not None:
            held.append(shown.low <= truth <= shown.high)
    return float(np.mean(held)) if held else 1.0, len(held)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("sizes", "chances"),
    [
        ([10], [0.1]),
        ([12], [0.5]),
        ([20], [0.97]),
        ([10, 60, 30, 12], [0.5, 0.95, 0.9, 0.8]),
        ([10, 10, 10, 10], [0.03, 0.03, 0.03, 0.03]),
        ([10, 200], [0.2, 0.99]),
    ],
)
def test_small_strata_are_covered(sizes: list[int], chances: list[float], seeds: int) -> None:
    covered, num = _covered(sizes, chances, seeds, 0.01 if seeds > 1 else 0.0)
    assert covered >= 0.92 and num == 250  # 0.95 within the trials' noise


@pytest.mark.parametrize("sizes", [[1], [3], [9], [1, 3, 200], [50, 9]])
def test_the_smallest_strata_have_no_interval(sizes: list[int]) -> None:
    assert _covered(sizes, [0.5] * len(sizes), 3, trials=5)[1] == 0


def test_what_does_not_vary_is_not_certain() -> None:
    """All answers are right: the interval still contains the rule of three's limit, 1 - 3 / n."""
    made = estimate([DomainValues(np.ones((3, 30)), np.arange(30), range(3))], SHARE)
    assert made is not None
    shown = made.interval(0.95)
    assert shown is not None
    assert shown.value == shown.high == 1 and 0.8 < shown.low < 0.9


@pytest.mark.parametrize(("measure", "size"), [(CORRELATION, 10), (UNBOUNDED, 50)])
def test_consistency_and_divergence_are_covered(measure: Measure, size: int) -> None:
    rng, held = np.random.default_rng(0), 0
    truth = 1.0 if measure is UNBOUNDED else 0.6
    for _ in range(trials := 300):
        values = (
            rng.exponential(1, size)
            if measure is UNBOUNDED
            else np.clip(0.6 + 0.2 * rng.standard_normal(size), -1, 1)
        )
        made = estimate([DomainValues(values[None], np.arange(size), [0])], measure)
        assert made is not None
        shown = made.shown(0.95)
        assert shown is not None
        held += shown.low <= truth <= shown.high
    assert held / trials >= 0.92
