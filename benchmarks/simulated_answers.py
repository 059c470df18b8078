"""Simulated answers of two arms, for `simulate_intervals`.

An answer is right if a standard normal variable is below the arm's threshold, so the true accuracy
is exact: Phi(threshold). The variable is the sum of a seed's effect, of a question's difficulty
(shared by both arms, or an arm's own), and of noise in each answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy


@dataclass(frozen=True)
class Case:
    """Two arms that answer the same questions. Shares are between 0 and 1."""

    domains: int = 1
    seeds: int = 3
    questions: int = 250
    """Questions per domain."""
    accuracy: float = 0.55
    """True accuracy, the mean of both arms."""
    difference: float = 0.0
    """True accuracy of the first arm minus that of the second."""
    seed_sd: float = 0.0
    """Standard deviation of a seed's effect on an arm's accuracy in one domain, as a share, for an
    accuracy of 0.5. At other accuracies the same effect moves fewer answers."""
    common: float = 0.0
    """The part of the seeds' variance that is the same in all domains."""
    same_seeds: bool = True
    """True if the domains' arms have the same seed numbers."""
    shared: float = 0.6
    """The part of the answers' variance that is a question's difficulty for both arms."""
    own: float = 0.1
    """The part that is a question's difficulty for one arm, whatever the seed."""

    @property
    def seed_scale(self) -> float:
        """Standard deviation of a seed's effect on the normal variable."""
        return self.seed_sd / float(scipy.stats.norm.pdf(0))

    def accuracies(self) -> np.ndarray:
        """Returns the true accuracies of the two arms, shape (2,)."""
        return self.accuracy + np.array([0.5, -0.5]) * self.difference


def answers(
    case: Case, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, list[int]]]:
    """Yields for each domain the answers (2, S, Q), 1 if right; the seeds' true accuracies (2, S);
    and the numbers of its seeds."""
    threshold = scipy.stats.norm.ppf(case.accuracies())[:, None]
    scale, rest = case.seed_scale, (1 - case.seed_scale**2) ** 0.5
    shape, q = (2, case.seeds), case.questions
    everywhere = rng.standard_normal(shape)
    for domain in range(case.domains):
        here = rng.standard_normal(shape)
        effect = scale * (case.common**0.5 * everywhere + (1 - case.common) ** 0.5 * here)
        question = case.shared**0.5 * rng.standard_normal((1, 1, q))
        question = question + case.own**0.5 * rng.standard_normal((2, 1, q))
        noise = (1 - case.shared - case.own) ** 0.5 * rng.standard_normal((*shape, q))
        right = effect[..., None] + rest * (question + noise) < threshold[..., None]
        numbers = [100 * domain * (not case.same_seeds) + seed for seed in range(case.seeds)]
        yield right.astype(float), scipy.stats.norm.cdf((threshold - effect) / rest), numbers
