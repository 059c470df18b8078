"""From answers to an estimate and its variances. Pure functions.

The estimate is the mean over domains of the mean over seeds and questions. Notation: S seeds, Q
questions of a domain, U questions of all domains together, H strata of questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ift_scale.analyse.intervals import Estimate, Measure


@dataclass(frozen=True)
class DomainValues:
    """Values of one domain, one row per seed, with the numbers of its questions and its seeds.

    A value is NaN if missing: a question without options has no rank correlation, a refused one no
    answer. A question that several domains ask has the same number in all of them.
    """

    values_SQ: np.ndarray
    questions_Q: np.ndarray
    seeds: Sequence[int]


def estimate(tables: Sequence[DomainValues], measure: Measure) -> Estimate | None:
    """Returns the mean over domains, equally weighted; None if no values are left.

    Seeds and domains without any value are left out.
    """
    domains = [
        domain for table in tables if (domain := _domain(table, measure, len(tables))) is not None
    ]
    if not domains:
        return None
    if len(domains) < len(
        tables
    ):  # the weight of pseudo-questions depends on the number of domains
        kept = [table for table in tables if np.isfinite(table.values_SQ).any()]
        return estimate(kept, measure)
    m = len(domains)
    own = _question_variance([(d.questions_Q, d.influence_SQ.mean(0) / m) for d in domains])
    own += sum(d.pseudo_variance for d in domains) / m**2
    between = sum(d.interaction for d in domains) / m**2
    seed_variance, seed_freedom = _seed_variance(domains)
    return Estimate(
        measure=measure,
        value=float(np.mean([d.means_S.mean() for d in domains])),
        centre=float(np.mean([d.centre for d in domains])),
        domains=m,
        seeds=min(len(d.seeds) for d in domains),
        fewest_questions=min(d.fewest for d in domains),
        seed_variance=seed_variance,
        seed_freedom=seed_freedom,
        question_variance=max(own - between, 0.0),
        own_variance=own,
    )


@dataclass(frozen=True)
class _Domain:
    """One domain's part: the seeds' means, and each answer's influence on them (0 if missing)."""

    seeds: list[int]
    questions_Q: np.ndarray
    means_S: np.ndarray
    influence_SQ: np.ndarray
    centre: float
    pseudo_variance: float
    interaction: float
    """Squared standard error of what varies over both seeds and questions."""
    fewest: int
    """Answered questions of the seed with the fewest."""


def _domain(table: DomainValues, measure: Measure, num_domains: int) -> _Domain | None:
    there_SQ = np.isfinite(table.values_SQ)
    rows, columns = there_SQ.any(1), there_SQ.any(0)
    if not rows.any():
        return None
    values_SQ, there_SQ = table.values_SQ[rows][:, columns], there_SQ[rows][:, columns]
    counts_S = there_SQ.sum(1)
    means_S = np.where(there_SQ, values_SQ, 0).sum(1) / counts_S
    deviations_SQ = np.where(there_SQ, values_SQ - means_S[:, None], 0)
    answers = _answers_per_question(deviations_SQ)
    weight = measure.weight / num_domains / answers
    influence_SQ = deviations_SQ / (counts_S + weight)[:, None]
    centres_S = (counts_S * means_S + weight * measure.middle) / (counts_S + weight)
    count, centre = counts_S.mean(), float(centres_S.mean())
    spread = sum((value - centre) ** 2 * w for value, w in measure.pseudo) / num_domains / answers
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


def _answers_per_question(deviations_SQ: np.ndarray) -> float:
    """Returns the independent answers that S answers to one question amount to, from 1 to S.

    S divided by the design effect (Kish 1965), with the mean squares of the crossed model. 1 if
    nothing varies.
    """
    num_seeds, num_questions = deviations_SQ.shape
    questions = num_seeds * (deviations_SQ.mean(0) ** 2).sum() / max(num_questions - 1, 1)
    if num_seeds == 1 or not deviations_SQ.any():
        return 1.0
    residual = deviations_SQ.var(0, ddof=1).sum() / max(num_questions - 1, 1)
    return 1 + (num_seeds - 1) * float(residual / max(questions, residual))


def _seed_variance(domains: Sequence[_Domain]) -> tuple[float, float]:
    """Returns the squared standard error over seeds and its degrees of freedom.

    The error is NaN if a domain has only one seed. If all domains have the same S seeds, it is the
    variance of the seeds' means over domains, divided by S, with S - 1 degrees of freedom. Parts of
    domains without a common seed are independent, and their degrees of freedom are combined
    (Satterthwaite 1946). A seed that a domain lacks contributes nothing for it.
    """
    fewest = min(len(domain.seeds) for domain in domains)
    if fewest == 1:
        return float("nan"), 0.0
    parts = []
    for block in _with_common_seeds(domains):
        effects: dict[int, float] = {}
        for domain in block:
            scale = len(domains) * np.sqrt(len(domain.seeds) * (len(domain.seeds) - 1))
            deviations_S = (domain.means_S - domain.means_S.mean()) / scale
            for seed, deviation in zip(domain.seeds, deviations_S, strict=True):
                effects[seed] = effects.get(seed, 0.0) + float(deviation)
        freedom = min(len(domain.seeds) for domain in block) - 1
        parts.append((sum(effect**2 for effect in effects.values()), freedom))
    variance = sum(part for part, _ in parts)
    squares = sum(part**2 / freedom for part, freedom in parts)
    return variance, variance**2 / squares if squares else float(fewest - 1)


def _with_common_seeds(domains: Sequence[_Domain]) -> list[list[_Domain]]:
    """Groups the domains: those that share a seed, directly or through others, are together."""
    blocks: list[tuple[set[int], list[_Domain]]] = []
    for domain in domains:
        seeds, block = set(domain.seeds), [domain]
        for other in [found for found in blocks if found[0] & seeds]:
            blocks.remove(other)
            seeds, block = seeds | other[0], other[1] + block
        blocks.append((seeds, block))
    return [block for _, block in blocks]


def _question_variance(influences: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Returns the squared standard error over questions.

    Args:
        influences: For each domain, its questions and the influence of each on the mean.

    A question that several domains ask is one question. Domains are fixed and questions are
    random, so questions vary within strata: those that the same domains ask. The only question of
    a stratum contributes its full square (a collapsed stratum), which is conservative.
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
