"""From answers to an estimate and its variances: the mean over domains of the mean over seeds and questions. Pure functions.

Notation: S seeds, Q questions of a domain, U questions of all domains together, H strata of questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ift_scale.analyse.intervals import Estimate, Measure


@dataclass(frozen=True)
class Table:
    """Values of one domain, one row per seed, and the numbers of its questions and seeds.

    A value is NaN where there is none: a question without options has no rank correlation, a refused one no given answer. A
    question that several domains ask has one number.
    """

    values_SQ: np.ndarray
    questions_Q: np.ndarray
    seeds: Sequence[int]


def estimate(tables: Sequence[Table], measure: Measure) -> Estimate | None:
    """The mean over domains, domains alike; None where nothing is left.

    A seed without any value is left out, and so is a domain without one.
    """
    domains = [
        found for table in tables if (found := _domain(table, measure, len(tables))) is not None
    ]
    if not domains:
        return None
    if len(domains) < len(tables):  # pseudo-questions go by the domains that count
        kept = [table for table in tables if np.isfinite(table.values_SQ).any()]
        return estimate(kept, measure)
    m = len(domains)
    own = _question_variance([(d.questions_Q, d.influence_SQ.mean(0) / m) for d in domains])
    own += sum(d.pseudo_variance for d in domains) / m**2
    between = sum(d.interaction for d in domains) / m**2
    return Estimate(
        measure=measure,
        value=float(np.mean([d.means_S.mean() for d in domains])),
        centre=float(np.mean([d.centre for d in domains])),
        domains=m,
        seeds=min(len(d.seeds) for d in domains),
        fewest_questions=min(d.fewest for d in domains),
        seed_variance=_seed_variance(domains),
        question_variance=max(own - between, 0.0),
        own_variance=own,
    )


@dataclass(frozen=True)
class _Domain:
    """One domain's part: seeds' means, and the influence of each answer on its seed's mean (0 for a missing one)."""

    seeds: list[int]
    questions_Q: np.ndarray
    means_S: np.ndarray
    influence_SQ: np.ndarray
    centre: float
    pseudo_variance: float
    interaction: float
    """Squared standard error from what varies over both seeds and questions."""
    fewest: int
    """Questions that the seed with the fewest answered."""


def _domain(table: Table, measure: Measure, num_domains: int) -> _Domain | None:
    there_SQ = np.isfinite(table.values_SQ)
    rows, columns = there_SQ.any(1), there_SQ.any(0)
    if not rows.any():
        return None
    values_SQ, there_SQ = table.values_SQ[rows][:, columns], there_SQ[rows][:, columns]
    counts_S = there_SQ.sum(1)
    means_S = np.where(there_SQ, values_SQ, 0).sum(1) / counts_S
    weight = measure.weight / num_domains
    influence_SQ = (
        np.where(there_SQ, values_SQ - means_S[:, None], 0) / (counts_S + weight)[:, None]
    )
    centres_S = (counts_S * means_S + weight * measure.middle) / (counts_S + weight)
    count, centre = counts_S.mean(), float(centres_S.mean())
    spread = sum(w / num_domains * (value - centre) ** 2 for value, w in measure.pseudo)
    spread += count * (means_S.mean() - centre) ** 2
    num_seeds, num_questions = influence_SQ.shape
    interaction = 0.0
    if num_seeds > 1:
        interaction = (
            influence_SQ.var(0, ddof=1).sum()
            / num_seeds
            * num_questions
            / max(num_questions - 1, 1)
        )
    seeds = [seed for seed, kept in zip(table.seeds, rows, strict=True) if kept]
    pseudo = float(spread / (count + weight) ** 2)
    fewest = int(counts_S.min())
    return _Domain(
        seeds,
        table.questions_Q[columns],
        means_S,
        influence_SQ,
        centre,
        pseudo,
        float(interaction),
        fewest,
    )


def _seed_variance(domains: Sequence[_Domain]) -> float:
    """Squared standard error of the mean over domains from its seeds; NaN where a domain has one.

    Where all domains have the same S seeds: the variance of the seeds' means over domains, divided by S. A seed that a domain lacks
    contributes nothing there.
    """
    if any(len(domain.seeds) == 1 for domain in domains):
        return float("nan")
    effects: dict[int, float] = {}
    for domain in domains:
        scale = len(domains) * np.sqrt(len(domain.seeds) * (len(domain.seeds) - 1))
        for seed, deviation in zip(
            domain.seeds, domain.means_S - domain.means_S.mean(), strict=True
        ):
            effects[seed] = effects.get(seed, 0.0) + float(deviation) / scale
    return sum(effect**2 for effect in effects.values())


def _question_variance(influences: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Squared standard error over questions; `influences`: (questions, influence of each on the mean) of each domain.

    A question that several domains ask is one question. Domains are fixed and questions are not, so they vary within strata: those
    that the same domains ask. The only question of a stratum counts whole (a collapsed stratum), which is on the safe side.
    """
    asked, number_N = np.unique(
        np.concatenate([questions for questions, _ in influences]), return_inverse=True
    )
    total_U = np.bincount(
        number_N, np.concatenate([influence for _, influence in influences]), len(asked)
    )
    stratum_U = np.zeros(len(asked), dtype=np.int64)
    for questions, _ in influences:
        _, stratum_U = np.unique(2 * stratum_U + np.isin(asked, questions), return_inverse=True)
    sizes_H = np.bincount(stratum_U)
    means_H = np.where(sizes_H > 1, np.bincount(stratum_U, total_U) / sizes_H, 0)
    squares_H = np.bincount(stratum_U, (total_U - means_H[stratum_U]) ** 2)
    return float((squares_H * sizes_H / np.maximum(sizes_H - 1, 1)).sum())
