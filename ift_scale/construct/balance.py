"""How far the sets differ in nuisance covariates: target letter, confidence, length, author.

Total variation distance for letters and authors, standardized mean difference for confidence and
length (Austin 2009: an absolute value above 0.1 is a notable imbalance). Each set is compared with
the incompatible set of the same domain and seed. Pure functions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

REFERENCE = "incompatible"


@dataclass
class Covariates:
    """The covariates of one set's examples; lengths in characters."""

    letter: list[str] = field(default_factory=list)
    author: list[str] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    length: list[int] = field(default_factory=list)

    def __add__(self, other: "Covariates") -> "Covariates":
        return Covariates(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def total_variation(a: Sequence[str], b: Sequence[str]) -> float:
    """Returns half the L1 distance of two empirical distributions: 0 if equal, 1 if disjoint."""
    first, second = Counter(a), Counter(b)
    return sum(abs(first[level] / len(a) - second[level] / len(b)) for level in first | second) / 2


def standardized_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the difference of means over the pooled standard deviation.

    Without variance it is 0 for equal values and infinite for different ones.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    spread = np.sqrt((first.var() + second.var()) / 2)
    difference = float(first.mean() - second.mean())
    if spread == 0:
        return 0.0 if difference == 0 else float(np.copysign(np.inf, difference))
    return difference / float(spread)


def distances(covariates: Covariates, reference: Covariates) -> dict[str, float]:
    """Returns the distance for each covariate that the set has.

    A set may teach no letter, and the base model has no confidence in invented questions.
    """
    out = {}
    if covariates.letter and reference.letter:
        out["letter"] = total_variation(covariates.letter, reference.letter)
    out["author"] = total_variation(covariates.author, reference.author)
    if covariates.confidence:
        out["confidence"] = standardized_difference(covariates.confidence, reference.confidence)
    out["length"] = standardized_difference(covariates.length, reference.length)
    return out


COLUMNS = ("domain", "seed", "stage", "setting", "covariate", "level", "value", "distance")
"""The columns of balance.csv, also if no set was built from pools."""


def rows(domain: str, seed: int, stage: str, sets: dict[str, Covariates]) -> list[dict[str, Any]]:
    """Returns rows of balance.csv: the distribution of each covariate in each setting's set.

    `stage` is "before" or "after" matching. For letters and authors, `level` names the letter or
    author and `value` is its share; for confidence and length, `level` names a statistic.
    """
    out: list[dict[str, Any]] = []
    for setting, covariates in sets.items():
        keys = {"domain": domain, "seed": seed, "stage": stage, "setting": setting}
        distance = distances(covariates, sets[REFERENCE]) if REFERENCE in sets else {}
        for name in ("letter", "author"):
            values = getattr(covariates, name)
            for level, count in sorted(Counter(values).items()):
                row = {
                    "covariate": name,
                    "level": level,
                    "value": count / len(values),
                    "distance": distance.get(name),
                }
                out.append(keys | row)
        for name in ("confidence", "length"):
            values = np.asarray(getattr(covariates, name), dtype=float)
            if not len(values):
                continue
            for level, value in (
                ("mean", values.mean()),
                ("median", np.median(values)),
                ("deviation", values.std()),
            ):
                row = {
                    "covariate": name,
                    "level": level,
                    "value": float(value),
                    "distance": distance.get(name),
                }
                out.append(keys | row)
    return out
