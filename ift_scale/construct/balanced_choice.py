"""Chooses questions so that two groups have equal distributions of their covariates.

The groups are questions that the model answers right and wrong with confidence ('right', 'wrong').

Fine balance (Rosenbaum, Ross and Silber 2007): the marginal distributions of each covariate are
made equal with as many questions as possible. This is an integer program over cells of equal
questions, solved by HiGHS (scipy.optimize.milp).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from ift_scale import draws

_LARGEST_GAP = 0.002
"""Relative optimality gap: the set found is at most this share smaller than the largest."""

Cell = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Traits:
    """The covariate levels of one question.

    For each covariate: its level as a harmonious or incompatible example, and as a self-aligning
    example. The two are equal for known right questions.
    """

    levels: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Matched:
    """Question ids of each set; both lists have the same length."""

    right: list[str]
    wrong: list[str]


def quantile_levels(values: Sequence[float], bins: int) -> Callable[[float], int]:
    """Returns a function from a value to its bin, with edges at quantiles of `values`."""
    edges = (
        np.unique(np.quantile(np.asarray(values, dtype=float), np.arange(1, bins) / bins))
        if len(values)
        else np.array([])
    )
    return lambda value: int(np.searchsorted(edges, value, side="right"))


class Program:
    """Integer program for the number of questions per cell that gives H, I and S equal margins."""

    def __init__(self, right: Mapping[str, Traits], wrong: Mapping[str, Traits]):
        self._ids: list[dict[Traits, list[str]]] = [{}, {}]
        for ids, traits in zip(self._ids, (right, wrong), strict=True):
            for id, trait in traits.items():
                ids.setdefault(trait, []).append(id)
        # Sorted: among equally good solutions the solver's choice may depend on the column order.
        self._cells = [(side, trait) for side, ids in enumerate(self._ids) for trait in sorted(ids)]
        self._counts = np.array(
            [len(self._ids[side][trait]) for side, trait in self._cells], dtype=float
        )
        self._margins = self._margin_matrix()

    def _margin_matrix(self) -> "scipy.sparse.lil_array":
        """Returns the rows that must be zero: H - I and H - S for each covariate and level."""
        rows: dict[tuple[int, int, int], int] = {}
        entries: list[tuple[int, int, float]] = []
        for column, (side, trait) in enumerate(self._cells):
            for covariate, levels in enumerate(trait.levels):
                for other, level in enumerate(levels):  # 0: compared with I, 1: with S
                    row = rows.setdefault((covariate, other, level), len(rows))
                    entries.append((row, column, 1.0 if side == 0 else -1.0))
        row = len(rows)  # equally many known right and known wrong questions
        entries += [
            (row, column, 1.0 if side == 0 else -1.0)
            for column, (side, _) in enumerate(self._cells)
        ]
        matrix = scipy.sparse.lil_array((row + 1, max(1, len(self._cells))))
        for at, column, value in entries:
            matrix[at, column] += value
        return matrix

    def largest(self, at_most: int) -> int:
        """Returns the size of the largest sets with equal margins, at most `at_most`.

        Not every smaller size is feasible. If all known wrong questions confuse A and B, for
        example, only even sizes are.
        """
        if not all(self._ids):
            return 0
        of_right = np.array([[1.0 if side == 0 else 0.0 for side, _ in self._cells]])
        equal = scipy.optimize.LinearConstraint(self._margins.tocsr(), 0, 0)
        solution = scipy.optimize.milp(
            -of_right[0],
            constraints=[equal, scipy.optimize.LinearConstraint(of_right, 0, at_most)],
            bounds=scipy.optimize.Bounds(0, self._counts),
            integrality=np.ones(len(self._cells)),
            options={"mip_rel_gap": _LARGEST_GAP},
        )
        return round(float(of_right[0] @ solution.x)) if solution.success else 0

    def choose(self, size: int, seed: str) -> Matched:
        """Returns `size` questions per set, as close to a proportional draw as the margins allow.

        `size` must be a size returned by `largest`.
        """
        num = len(self._cells)
        sides = np.array([side for side, _ in self._cells])
        totals = np.array([self._counts[sides == side].sum() for side in (0, 1)])
        proportional = self._counts * size / totals[sides]
        # Variables: the counts, then their absolute deviations from `proportional`, whose sum is
        # minimized.
        margins = self._margins.tocsr()
        equal = scipy.sparse.lil_array((margins.shape[0] + 1, 2 * num))
        equal[: margins.shape[0], :num] = margins
        equal[margins.shape[0], :num] = (sides == 0).astype(float)
        one = scipy.sparse.eye_array(num)
        at_least = scipy.sparse.block_array([[one, one], [-one, one]])
        values = np.zeros(margins.shape[0] + 1)
        values[-1] = size
        solution = scipy.optimize.milp(
            np.concatenate([np.zeros(num), np.ones(num)]),
            constraints=[
                scipy.optimize.LinearConstraint(equal.tocsr(), values, values),
                scipy.optimize.LinearConstraint(
                    at_least.tocsr(), np.concatenate([proportional, -proportional]), np.inf
                ),
            ],
            bounds=scipy.optimize.Bounds(0, np.concatenate([self._counts, np.full(num, np.inf)])),
            integrality=np.concatenate([np.ones(num), np.zeros(num)]),
            options={"mip_rel_gap": 0.05},
        )
        if not solution.success:
            raise RuntimeError(
                f"HiGHS found no sets of {size} questions, although this size was feasible before: "
                f"{solution.message}"
            )
        sets: list[list[str]] = [[], []]
        for number, (side, trait) in enumerate(self._cells):
            ids = self._ids[side][trait]
            sets[side] += draws.sample(ids, round(float(solution.x[number])), seed)
        return Matched(*sets)


def describe_margins(right: Sequence[Traits], wrong: Sequence[Traits], names: Sequence[str]) -> str:
    """Returns the questions per level on each side, as text for an error message."""
    texts = []
    for covariate, name in enumerate(names):
        sides = {
            "right": Counter(t.levels[covariate][0] for t in right),
            "wrong": Counter(t.levels[covariate][0] for t in wrong),
        }
        counts = "; ".join(
            f"known {side} {dict(sorted(levels.items()))}" for side, levels in sides.items()
        )
        texts.append(f"{name} by level: {counts}")
    return ". ".join(texts)
