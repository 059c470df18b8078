"""Simulated coverage of intervals and correctness of verdicts, for docs/intervals.md.

    python -m benchmarks.simulate_intervals [--trials 1000] [--label now]

Rows of one label replace that label's rows in benchmarks/results/intervals.json; `before` are those
of the package before its intervals became Student's (commit f14da9e first in PYTHONPATH).
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import click
import numpy as np

from benchmarks.simulated_answers import Case, answers
from benchmarks.suite.registry import results_folder
from benchmarks.suite.rows import origin, store_inputs
from ift_scale.analyse.estimates import DomainValues, estimate
from ift_scale.analyse.intervals import DIFFERENCE, SHARE, Estimate, Measure
from ift_scale.analyse.paired import discordant, mcnemar
from ift_scale.report.verdicts import verdict

LEVEL = 0.95
SEEDS, QUESTIONS, SEED_SDS = (1, 3, 5, 10), (50, 250, 1000), (0.0, 0.01, 0.02, 0.05)


def compared(case: Case, rng: np.random.Generator) -> tuple[Estimate, float, Estimate, float]:
    """Returns the first arm's accuracy, the true one, the difference, and McNemar's p.

    With one seed the interval of a mean is about this model, and so is the truth.
    """
    right, difference, both, means, start = [], [], [], [], 0
    for right_ASQ, chance_AS, seeds in answers(case, rng):
        questions = np.arange(start, start := start + case.questions)
        right.append(DomainValues(right_ASQ[0], questions, seeds))
        difference.append(DomainValues(right_ASQ[0] - right_ASQ[1], questions, seeds))
        both.append(right_ASQ)
        means.append(chance_AS[0].mean())
    whole = np.concatenate(both, axis=2)
    truth = float(np.mean(means)) if case.seeds == 1 else float(case.accuracies()[0])
    p = mcnemar(discordant(whole[0], whole[1]))
    return _made(right, SHARE), truth, _made(difference, DIFFERENCE), p


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
        mean, truth, found, p = compared(case, rng)
        shown, both, own = mean.shown(LEVEL), found.interval(LEVEL), found.over_questions(LEVEL)
        judged = verdict(both and both.low, both and both.high, found.seeds, level=LEVEL)
        if judged in counts:
            counts[judged] += 1
        counts["models"] += own is not None and own.excludes_zero and p <= 1 - LEVEL
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
    for seeds, accuracy, sd in product(SEEDS, (0.9, 0.98), (0.0, 0.05)):
        yield Case(seeds=seeds, accuracy=accuracy, seed_sd=sd)
    for seeds, sd in product(SEEDS, (0.0, 0.02)):
        yield Case(seeds=seeds, questions=2000, accuracy=0.5, seed_sd=sd)
    for questions, sd in product(QUESTIONS, SEED_SDS):
        yield Case(seeds=2, questions=questions, accuracy=0.5, seed_sd=sd)
    for seeds, (shared, own), sd in product((3, 5, 10), ((0.1, 0.1), (0.9, 0.05)), SEED_SDS):
        yield Case(seeds=seeds, accuracy=0.5, seed_sd=sd, shared=shared, own=own)
    for domains, seeds, sd in product((2, 4), (3, 5), (0.0, 0.02, 0.05, 0.1)):
        case = Case(domains, seeds, 100, seed_sd=sd)
        yield from (case, replace(case, common=1.0), replace(case, same_seeds=False))
    for domains, seeds, sd, difference in product(
        (1, 4), (2, 3, 5, 10), (0.0, 0.02, 0.05), (0.05, 0.1)
    ):
        yield Case(domains, seeds, seed_sd=sd, difference=difference)


@click.command()
@click.option("--trials", default=1000, show_default=True)
@click.option("--label", default="now", show_default=True)
def main(trials: int, label: str) -> None:
    """Simulate all cases and store them under LABEL."""
    path, started = results_folder() / "intervals.json", time.monotonic()
    rows = [asdict(case) | simulate(case, trials) for case in cases()]
    runs = json.loads(path.read_text())["rows"] if path.is_file() else {}
    seconds = time.monotonic() - started
    runs[label] = {**origin(), "trials": trials, "seconds": seconds, "rows": rows}
    print(store_inputs("intervals", runs))


if __name__ == "__main__":
    main()
