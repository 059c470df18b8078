"""Simulated coverage of intervals and correctness of verdicts, for docs/intervals.md.

    python -m benchmarks.simulate_intervals [--trials 1000] [--label now|points]

Rows of one label replace that label's rows in benchmarks/results/intervals.json. `now`: means and
differences; `points`: correlations. `before`: means and differences with the intervals of commit
f14da9e, by these files in a checkout of it.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import click
import numpy as np
from rich.progress import track

from benchmarks.simulated_answers import Case, answers
from benchmarks.simulated_points import PointsCase, simulate_points
from benchmarks.suite.intervals import picture
from benchmarks.suite.registry import results_folder
from benchmarks.suite.rows import origin, store_inputs
from ift_scale.analyse.estimates import DomainValues, estimate
from ift_scale.analyse.intervals import DIFFERENCE, SHARE, Estimate, Measure
from ift_scale.analyse.paired import discordant, mcnemar
from ift_scale.report.verdicts import verdict

LEVEL = 0.95
SEEDS, QUESTIONS, SEED_SDS = (1, 3, 5, 10), (50, 250, 1000), (0.0, 0.02, 0.05)


def compared(case: Case, rng: np.random.Generator) -> tuple[Estimate, float, Estimate, np.ndarray]:
    """Returns the first arm's accuracy, the true one, the difference, and all answers (2, S, Q).

    With one seed the interval of a mean is about this model, and so is the truth.
    """
    right, difference, both, means, start = [], [], [], [], 0
    for right_ASQ, chance_AS, seeds in answers(case, rng):
        questions = np.arange(start, start := start + case.questions)
        right.append(DomainValues(right_ASQ[0], questions, seeds))
        difference.append(DomainValues(right_ASQ[0] - right_ASQ[1], questions, seeds))
        both.append(right_ASQ)
        means.append(chance_AS[0].mean())
    truth = float(np.mean(means)) if case.seeds == 1 else float(case.accuracies()[0])
    whole = np.concatenate(both, axis=2)
    return _made(right, SHARE), truth, _made(difference, DIFFERENCE), whole


def _made(tables: list[DomainValues], measure: Measure) -> Estimate:
    made = estimate(tables, measure)
    assert made is not None
    return made


def simulate(case: Case, trials: int, seed: int = 0) -> dict[str, Any]:
    """Returns shares of the trials, and mean half-widths.

    `mean_covered`, `covered`: the interval of the mean and of the difference contains the truth;
    the verdicts on the difference; `models`: its interval over questions and McNemar's test, which
    are about these trained models, would show an effect. The shares of differences are None with
    one seed.
    """
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("mean_covered", "covered", "holds", "does not hold", "models"), 0)
    widths: dict[str, list[float]] = {"mean_half_width": [], "half_width": []}
    for _ in range(trials):
        mean, truth, found, whole = compared(case, rng)
        shown, both, own = mean.shown(LEVEL), found.interval(LEVEL), found.over_questions(LEVEL)
        judged = verdict(both and both.low, both and both.high, found.seeds, level=LEVEL)
        if judged in counts:
            counts[judged] += 1
        if own is not None and own.excludes_zero:
            counts["models"] += mcnemar(discordant(whole[0], whole[1])) <= 1 - LEVEL
        if shown:
            counts["mean_covered"] += shown.low <= truth <= shown.high
            widths["mean_half_width"].append((shown.high - shown.low) / 2)
        if both:
            counts["covered"] += both.low <= case.difference <= both.high
            widths["half_width"].append((both.high - both.low) / 2)
    shares: dict[str, Any] = {name: count / trials for name, count in counts.items()}
    if not widths["half_width"]:
        shares["covered"] = None
    return shares | {
        name: float(np.mean(values)) if values else None for name, values in widths.items()
    }


def cases() -> Iterator[Case]:
    """Yields cases without an effect, and with 5 and 10 points."""
    for seeds, questions, accuracy, sd in product(SEEDS, QUESTIONS, (0.02, 0.1, 0.5), SEED_SDS):
        yield Case(seeds=seeds, questions=questions, accuracy=accuracy, seed_sd=sd)
    for seeds, accuracy, sd in product((3, 10), (0.9, 0.98), (0.0, 0.05)):
        yield Case(seeds=seeds, accuracy=accuracy, seed_sd=sd)
    for seeds in SEEDS:
        yield Case(seeds=seeds, questions=2000, accuracy=0.5, seed_sd=0.01)
    for questions, sd in product(QUESTIONS, SEED_SDS):
        yield Case(seeds=2, questions=questions, accuracy=0.5, seed_sd=sd)
    for seeds, (shared, own), sd in product((3, 10), ((0.1, 0.1), (0.9, 0.05)), SEED_SDS):
        yield Case(seeds=seeds, accuracy=0.5, seed_sd=sd, shared=shared, own=own)
    for domains, seeds, sd in product((2, 4), (3, 5), (0.0, 0.05)):
        case = Case(domains, seeds, 100, seed_sd=sd)
        yield from (case, replace(case, common=1.0), replace(case, same_seeds=False))
    for domains, seeds, sd in product((1, 4), (3, 5, 10), SEED_SDS):
        yield Case(domains, seeds, seed_sd=sd, difference=0.05)
        if domains == 1:
            yield Case(seeds=seeds, seed_sd=sd, difference=0.1)


def points_cases() -> Iterator[PointsCase]:
    """Yields cases without and with a relation, and with one that differs between domains."""
    for domains, ratios, apart, dependence, slope in product(
        (2, 3, 4, 8), (4, 8), (0.0, 1.5), (0.0, 0.7), (0.0, 0.8)
    ):
        yield PointsCase(domains, ratios, slope, 0.0, apart, dependence)
    for domains in (3, 4, 8):
        yield PointsCase(domains, 8, slope_sd=0.5)


@click.command()
@click.option("--trials", default=1000, show_default=True)
@click.option("--label", default="now", show_default=True)
def main(trials: int, label: str) -> None:
    """Simulate all cases and store them under LABEL."""
    path, started = results_folder() / "intervals.json", time.monotonic()
    if label == "points":
        rows = [
            asdict(case) | simulate_points(case, trials) for case in track(list(points_cases()))
        ]
    else:
        rows = [asdict(case) | simulate(case, trials) for case in track(list(cases()))]
    runs = json.loads(path.read_text())["rows"] if path.is_file() else {}
    seconds = time.monotonic() - started
    runs[label] = {**origin(), "trials": trials, "seconds": seconds, "rows": rows}
    print(store_inputs("intervals", runs))
    if {"before", "now"} <= set(runs):
        picture()


if __name__ == "__main__":
    main()
