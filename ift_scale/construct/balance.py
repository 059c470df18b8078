"""How far the sets differ in what should not differ: target letters, confidence, length, author. Pure functions.

Total variation distance for letters and authors, standardized mean difference for confidence and length (Austin 2009: over 0.1 is
an imbalance worth seeing), each against the incompatible set of the same domain and seed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

REFERENCE = "incompatible"


@dataclass
class Covariates:
    """Of one set: its examples' target letters, authors, confidences and lengths in characters."""

    letter: list[str] = field(default_factory=list)
    author: list[str] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    length: list[int] = field(default_factory=list)

    def __add__(self, other: "Covariates") -> "Covariates":
        return Covariates(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def total_variation(a: Sequence[str], b: Sequence[str]) -> float:
    """Half the summed distance of two empirical distributions: 0 equal, 1 disjoint."""
    first, second = Counter(a), Counter(b)
    return sum(abs(first[level] / len(a) - second[level] / len(b)) for level in first | second) / 2


def standardized_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """Difference of means over the pooled standard deviation; 0 where both have one and the same value, infinite where two."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    spread = np.sqrt((first.var() + second.var()) / 2)
    difference = float(first.mean() - second.mean())
    if spread == 0:
        return 0.0 if difference == 0 else float(np.copysign(np.inf, difference))
    return difference / float(spread)


def distances(found: Covariates, reference: Covariates) -> dict[str, float]:
    """By covariate; without letters (free questions, refusals only) there is none for them."""
    out = {}
    if found.letter and reference.letter:
        out["letter"] = total_variation(found.letter, reference.letter)
    out["author"] = total_variation(found.author, reference.author)
    out["confidence"] = standardized_difference(found.confidence, reference.confidence)
    out["length"] = standardized_difference(found.length, reference.length)
    return out


def rows(domain: str, seed: int, stage: str, sets: dict[str, Covariates]) -> list[dict[str, Any]]:
    """One row a setting and covariate. `stage`: before or after matching; `level` names a share's letter or author."""
    out: list[dict[str, Any]] = []
    for setting, found in sets.items():
        who = {"domain": domain, "seed": seed, "stage": stage, "setting": setting}
        distance = distances(found, sets[REFERENCE]) if REFERENCE in sets else {}
        for name in ("letter", "author"):
            values = getattr(found, name)
            for level, count in sorted(Counter(values).items()):
                row = {
                    "covariate": name,
                    "level": level,
                    "value": count / len(values),
                    "distance": distance.get(name),
                }
                out.append(who | row)
        for name in ("confidence", "length"):
            values = np.asarray(getattr(found, name), dtype=float)
            for level, value in (
                ("mean", values.mean()),
                ("median", np.median(values)),
                ("deviation", values.std()),
            ):
                out.append(
                    who
                    | {
                        "covariate": name,
                        "level": level,
                        "value": float(value),
                        "distance": distance.get(name),
                    }
                )
    return out
