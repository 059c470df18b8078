"""How often intervals cover and verdicts are right, simulated: what docs/formulas.md says of them.

    python -m benchmarks.simulate_intervals [--trials 2000]

Two arms of some seeds answer the same questions in some domains. A question has its own chance of being answered rightly, a seed
moves its arm's (by `seed_sd`; `common` is the share of that variance that a seed has in all domains alike), and the rest is noise.
Stores the rows in benchmarks/results/intervals.json and prints them as a table.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import click
import numpy as np

from benchmarks.suite.rows import store_inputs
from ift_scale.analyse.estimates import Table, estimate
from ift_scale.analyse.intervals import DIFFERENCE, SHARE, Estimate
from ift_scale.analyse.paired import discordant, mcnemar
from ift_scale.report.verdicts import verdict

LEVEL = 0.95
SIZES = {1: (250,), 2: (60, 145), 4: (250, 250, 250, 250)}
"""Questions of each domain."""


@dataclass(frozen=True)
class Case:
    domains: int
    seeds: int
    seed_sd: float
    """Standard deviation of a seed's effect on its arm's accuracy in one domain, a share."""
    common: float = 0.0
    same_seeds: bool = True
    """Whether the domains' arms have seeds of the same numbers."""
    difference: float = 0.0
    """The first arm's true accuracy minus the second's."""


def answers(
    case: Case, sizes: tuple[int, ...], rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Of each domain the answers of both arms, shape (2, S, Q), 1 where right, and the numbers of the seeds."""
    shape = (2, case.seeds, 1)
    shared = rng.standard_normal(shape)
    for domain, num_questions in enumerate(sizes):
        effect = case.seed_sd * (
            case.common**0.5 * shared + (1 - case.common) ** 0.5 * rng.standard_normal(shape)
        )
        chance = np.clip(0.55 + 0.2 * rng.standard_normal(num_questions), 0.1, 0.9)
        sides = np.array([0.5, -0.5])[:, None, None] * case.difference
        own = (
            rng.random((2, case.seeds, num_questions)) < 0.3
        )  # answers of one question agree over arms and seeds, but for these
        drawn = np.where(own, rng.random(own.shape), rng.random(num_questions))
        yield (
            (drawn < chance + effect + sides).astype(float),
            [100 * domain * (not case.same_seeds) + s for s in range(case.seeds)],
        )


def compared(
    case: Case, sizes: tuple[int, ...], rng: np.random.Generator
) -> tuple[Estimate, Estimate, float]:
    """The first arm's accuracy, the difference, and McNemar's p."""
    right, difference, pairs, start = [], [], [], 0
    for both, seeds in answers(case, sizes, rng):
        questions = np.arange(start, start := start + both.shape[2])
        right.append(Table(both[0], questions, seeds))
        difference.append(Table(both[0] - both[1], questions, seeds))
        pairs.append(both)
    whole = np.concatenate(pairs, axis=2)
    share, found = estimate(right, SHARE), estimate(difference, DIFFERENCE)
    assert share is not None and found is not None
    return share, found, mcnemar(discordant(whole[0], whole[1]))


def simulate(
    case: Case, trials: int, sizes: tuple[int, ...] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Shares of the trials: `covered`, the difference's interval holds the truth; the verdicts; `models`, what one would have taken
    for an effect by the interval over questions and McNemar's test, which are about these very models; the mean half-width."""
    rng, sizes = np.random.default_rng(seed), sizes or SIZES[case.domains]
    counts = dict.fromkeys(("covered", "holds", "does not hold", "models"), 0)
    widths = []
    for _ in range(trials):
        _, found, p = compared(case, sizes, rng)
        both, own = found.interval(LEVEL), found.over_questions(LEVEL)
        told = verdict(both and both.low, both and both.high, found.seeds, found.p_value(), LEVEL)
        if told in counts:
            counts[told] += 1
        counts["models"] += own is not None and own.excludes_zero and p <= 1 - LEVEL
        if both:
            counts["covered"] += both.low <= case.difference <= both.high
            widths.append((both.high - both.low) / 2)
    shares: dict[str, Any] = {name: float(count / trials) for name, count in counts.items()}
    if not widths:
        shares["covered"] = None
    return shares | {"half_width": float(np.mean(widths)) if widths else None}


def cases() -> list[Case]:
    """No effect, and effects of 5 and 10 points at seed effects of 2 points."""
    out = []
    for domains, seeds, sd in product(SIZES, (1, 3, 5), (0.0, 0.01, 0.02, 0.05, 0.1)):
        for common in (0.0, 0.5, 1.0) if domains > 1 and sd else (0.0,):
            out.append(Case(domains, seeds, sd, common))
        if domains > 1 and seeds > 1 and sd:
            out.append(Case(domains, seeds, sd, same_seeds=False))
    for domains, seeds, sd, difference in product(
        (1, 4), (2, 3, 5, 10), (0.0, 0.02, 0.05), (0.05, 0.1)
    ):
        out.append(Case(domains, seeds, sd, difference=difference))
    return out


@click.command()
@click.option("--trials", default=2000, show_default=True)
def main(trials: int) -> None:
    """Simulate all cases, store and print them."""
    rows = [asdict(case) | simulate(case, trials) for case in cases()]
    path = store_inputs("intervals", {"trials": trials, "rows": rows})
    print(f"{path}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join('' if v is None else f'{v:.3g}' for v in row.values())} |")


if __name__ == "__main__":
    main()
