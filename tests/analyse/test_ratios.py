"""The line between incompatible and self-aligning from scores whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from ift_scale.analyse.panel import Panels
from ift_scale.analyse.ratios import best_ratio_table, correlation_table, point_table
from ift_scale.config import AnalyseConfig
from tests.analyse.scores import BASE, WORSE, arm, choices, panels

RATIOS = ("incompatible", "mixture-0.2", "mixture-0.6", "self_aligning")
CONFIG = AnalyseConfig(bootstrap_samples=400)


def _line(
    domains: str = "de",
    rights: tuple[int, ...] = (10, 20, 36, 30),
    settings: tuple[str, ...] = RATIOS,
) -> Panels:
    arms = [
        arm(setting, seed, choices([i < right + 2 * (d == "e") for i in range(40)], d), d)
        for d in domains
        for setting, right in zip(settings, rights, strict=False)
        for seed in (0, 1)
    ]
    base = [
        s for d in domains for s in choices([i < (30 if d == "e" else 36) for i in range(40)], d)
    ]
    return panels(arms, base)


def test_correlation_over_domains_and_ratios() -> None:
    points = point_table(_line())
    assert len(points) == 8 and points.ratio.to_list() == [0, 0.2, 0.6, 1] * 2
    assert points.base_accuracy.to_list() == [0.9] * 4 + [0.75] * 4
    table = correlation_table(points, CONFIG, 2)
    assert table.measure.to_list() == ["consistency", "kl"] and (table.n == 8).all()
    assert (
        table.rho[0] > 0.5 > -0.5 > table.rho[1]
        and table.low.notna().all()
        and (table.reason == "").all()
    )
    assert (
        (table.seeds == 2).all()
        and (table.domains == 2).all()
        and table.p_within.between(0.001, 0.05).all()
    )
    alone = correlation_table(points.assign(seeds=1), CONFIG, 2)
    assert alone.low.isna().all() and (alone.reason == "one seed: no interval over seeds").all()


def test_a_correlation_without_variance_says_so() -> None:
    row = correlation_table(point_table(_line("d", (30, 30, 30, 30))), CONFIG, 1).iloc[0]
    assert (
        pd.isna(row.rho)
        and pd.isna(row.p)
        and row.reason == "zero variance: the measure is the same in all 4 points"
    )


def test_best_ratio() -> None:
    table = best_ratio_table(_line(), 0.95).set_index("domain")
    assert table.best_ratio.to_dict() == {"d": 0.6, "e": 0.6, "all": 0.6}
    row = table.loc["all"]
    assert (
        row.accuracy == pytest.approx(37 / 40)
        and row.difference == pytest.approx(6 / 40)
        and row.low > 0
        and row.reason == ""
    )
    assert row.best_other == 0.6 and row.low < row.difference < row.high
    last = best_ratio_table(_line(rights=(10, 20, 24, 36)), 0.95).set_index("domain").loc["all"]
    assert (
        last.best_ratio == 1
        and last.best_other == 0.6
        and last.difference == pytest.approx(-12 / 40)
        and last.high < 0
    )
    without = best_ratio_table(_line(settings=RATIOS[:3]), 0.95).iloc[0]
    assert (
        pd.isna(without.difference)
        and without.reason == "no arm of ratio 1 (self-aligning) to compare with"
    )


def test_ratios_are_compared_over_the_domains_that_have_ratio_1() -> None:
    whole, found = _line(), _line("d")
    arms = [
        arm("self_aligning", seed, choices([i < 30 for i in range(40)], "d"), "d")
        for seed in (0, 1)
    ]
    lines = {("d", "e"): RATIOS[:3], ("d",): RATIOS[3:]}
    arms += [
        arm(setting, seed, choices([i < right for i in range(40)], d), d)
        for domains, settings in lines.items() if settings[0] != "self_aligning"
        for d in domains for setting, right in zip(settings, (10, 20, 36), strict=True) for seed in (0, 1)
    ]  # fmt: skip
    partial = panels(arms, [s for d in "de" for s in choices([True] * 40, d)])
    row = best_ratio_table(partial, 0.95).set_index("domain").loc["all"]
    assert (row.domains, row.of_domains, row.over) == (
        1,
        2,
        "d",
    ) and row.difference == pytest.approx(6 / 40)
    assert row.accuracy == best_ratio_table(found, 0.95).iloc[0].accuracy == 36 / 40
    assert best_ratio_table(whole, 0.95).set_index("domain").loc["all"].domains == 2


def test_one_seed_cannot_tell_which_ratio_is_best() -> None:
    arms = [
        arm(setting, 0, choices([i < 5 * n for i in range(40)]))
        for n, setting in enumerate(RATIOS, 1)
    ]
    row = best_ratio_table(panels(arms, BASE), 0.95).iloc[0]
    assert (
        row.difference == -5 / 40
        and pd.isna(row.low)
        and row.seeds == 1
        and row.reason == "one seed: no interval over seeds"
    )


def test_the_interval_of_the_best_ratio_allows_for_its_choice() -> None:
    """Six ratios that are all alike: the best is called better than ratio 1 no more often than the level says (one side of 0.6)."""
    ratios = ("incompatible", *(f"mixture-{r}" for r in (0.2, 0.4, 0.6, 0.8)), "self_aligning")
    rng, called, trials = np.random.default_rng(0), 0, 30
    for _ in range(trials):
        arms = [
            arm(setting, seed, choices((rng.random(40) < 0.5).tolist()))
            for setting in ratios
            for seed in (0, 1, 2)
        ]
        called += best_ratio_table(panels(arms, BASE), 0.6).iloc[0].low > 0
    assert called / trials < 0.3  # 0.2 is meant; without the correction it would be over a half


def test_two_ratios_are_no_line() -> None:
    arms = [arm(setting, 0, choices(WORSE)) for setting in ("incompatible", "self_aligning")]
    points = point_table(panels(arms, BASE))
    assert (
        points.empty
        and correlation_table(points, CONFIG, 2).empty
        and best_ratio_table(panels(arms, BASE), 0.95).empty
    )
