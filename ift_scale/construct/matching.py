"""Matching by selection: which of the known right and known wrong questions make sets that differ in nothing but consistency.

Fine balance (Rosenbaum, Ross and Silber 2007): the sets' distributions of each covariate are made equal, margin by margin, with as
many questions as that allows. An integer program over cells of equal questions, solved by HiGHS (scipy.optimize.milp).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from ift_scale import draws

_LARGEST_GAP = 0.002
"""The largest set found is at most this share smaller than the largest possible."""

Cell = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Traits:
    """What is to be made equal of one question. By covariate: its level as a harmonious or incompatible example, and as a
    self-aligning one (of a known right question the same)."""

    levels: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Matched:
    """Ids of the questions in each set; both lists have the same length."""

    right: list[str]
    wrong: list[str]


def quantile_levels(values: Sequence[float], bins: int) -> Callable[[float], int]:
    """The bin of a value, by quantiles of `values`."""
    edges = (
        np.unique(np.quantile(np.asarray(values, dtype=float), np.arange(1, bins) / bins))
        if len(values)
        else np.array([])
    )
    return lambda value: int(np.searchsorted(edges, value, side="right"))


class Program:
    """Counts of questions to take of each cell of equal traits, such that H, I and S have the same margins."""

    def __init__(self, right: Mapping[str, Traits], wrong: Mapping[str, Traits]):
        self._ids: list[dict[Traits, list[str]]] = [{}, {}]
        for ids, traits in zip(self._ids, (right, wrong), strict=True):
            for id, trait in traits.items():
                ids.setdefault(trait, []).append(id)
        # Sorted: the solver's choice among equally good solutions may depend on the order of its columns.
        self._cells = [(side, trait) for side, ids in enumerate(self._ids) for trait in sorted(ids)]
        self._counts = np.array(
            [len(self._ids[side][trait]) for side, trait in self._cells], dtype=float
        )
        self._margins = self._margin_matrix()

    def _margin_matrix(self) -> "scipy.sparse.lil_array":
        """Rows that must be zero: for each covariate and level H minus I, and H minus S."""
        rows: dict[tuple[int, int, int], int] = {}
        entries: list[tuple[int, int, float]] = []
        for column, (side, trait) in enumerate(self._cells):
            for covariate, levels in enumerate(trait.levels):
                for other, level in enumerate(levels):  # compared with I, with S
                    row = rows.setdefault((covariate, other, level), len(rows))
                    entries.append((row, column, 1.0 if side == 0 else -1.0))
        row = len(rows)  # as many of the one as of the other, whatever the covariates
        entries += [
            (row, column, 1.0 if side == 0 else -1.0)
            for column, (side, _) in enumerate(self._cells)
        ]
        matrix = scipy.sparse.lil_array((row + 1, max(1, len(self._cells))))
        for at, column, value in entries:
            matrix[at, column] += value
        return matrix

    def largest(self, at_most: int) -> int:
        """Questions of the largest sets with equal margins that have no more than `at_most`.

        Not every smaller size can be had: where all known wrong questions are A for B or B for A, only even ones.
        """
        if not all(self._ids):
            return 0
        of_right = np.array([[1.0 if side == 0 else 0.0 for side, _ in self._cells]])
        equal = scipy.optimize.LinearConstraint(self._margins.tocsr(), 0, 0)
        found = scipy.optimize.milp(
            -of_right[0],
            constraints=[equal, scipy.optimize.LinearConstraint(of_right, 0, at_most)],
            bounds=scipy.optimize.Bounds(0, self._counts),
            integrality=np.ones(len(self._cells)),
            options={"mip_rel_gap": _LARGEST_GAP},
        )
        return round(float(of_right[0] @ found.x)) if found.success else 0

    def choose(self, size: int, seed: str) -> Matched:
        """`size` questions a set, as `largest` found possible, as near to a proportional draw as the margins allow."""
        num = len(self._cells)
        sides = np.array([side for side, _ in self._cells])
        totals = np.array([self._counts[sides == side].sum() for side in (0, 1)])
        wanted = self._counts * size / totals[sides]
        # Counts, and behind them their distances from `wanted`, whose sum is made small.
        margins = self._margins.tocsr()
        equal = scipy.sparse.lil_array((margins.shape[0] + 1, 2 * num))
        equal[: margins.shape[0], :num] = margins
        equal[margins.shape[0], :num] = (sides == 0).astype(float)
        one = scipy.sparse.eye_array(num)
        at_least = scipy.sparse.block_array([[one, one], [-one, one]])
        values = np.zeros(margins.shape[0] + 1)
        values[-1] = size
        found = scipy.optimize.milp(
            np.concatenate([np.zeros(num), np.ones(num)]),
            constraints=[
                scipy.optimize.LinearConstraint(equal.tocsr(), values, values),
                scipy.optimize.LinearConstraint(
                    at_least.tocsr(), np.concatenate([wanted, -wanted]), np.inf
                ),
            ],
            bounds=scipy.optimize.Bounds(0, np.concatenate([self._counts, np.full(num, np.inf)])),
            integrality=np.concatenate([np.ones(num), np.zeros(num)]),
            options={"mip_rel_gap": 0.05},
        )
        if not found.success:
            raise RuntimeError(
                f"HiGHS finds no sets of {size} questions although it found such before: {found.message}"
            )
        sets: list[list[str]] = [[], []]
        for number, (side, trait) in enumerate(self._cells):
            ids = self._ids[side][trait]
            sets[side] += draws.sample(ids, round(float(found.x[number])), seed)
        return Matched(*sets)


def margins_told(right: Sequence[Traits], wrong: Sequence[Traits], names: Sequence[str]) -> str:
    """For an error: how many questions each side has of each level."""
    told = []
    for covariate, name in enumerate(names):
        sides = {
            "right": Counter(t.levels[covariate][0] for t in right),
            "wrong": Counter(t.levels[covariate][0] for t in wrong),
        }
        counts = "; ".join(
            f"known {side} {dict(sorted(levels.items()))}" for side, levels in sides.items()
        )
        told.append(f"{name} by level: {counts}")
    return ". ".join(told)
