"""What the base model knows of the pools' train questions, from its probe: the buckets that sets are drawn from. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ift_scale.records import GRADES, Arm, Score
from ift_scale.treatments import Bucket

NEAR_TIE = 0.02


@dataclass(frozen=True)
class Knowledge:
    """A domain's train questions by what the model knows: ids in the order of the pool."""

    right: list[str]
    """Predicted with confidence, and the prediction is the answer."""
    wrong: list[str]
    """Predicted with confidence, and the prediction is another option."""
    uncertain: list[str]
    """No option above the confidence threshold."""
    mistaken: list[str]
    """Predicted wrongly, with confidence or without."""
    graded: dict[str, list[str]]
    """By SliCK's grade; empty lists where grades were not asked for."""
    near_threshold: int
    """Questions whose confidence is within NEAR_TIE of the threshold: rounding could move these."""

    @property
    def all(self) -> list[str]:
        return [*self.right, *self.wrong, *self.uncertain]

    def bucket(self, name: Bucket) -> list[str]:
        if name == "any":
            return self.all
        return self.graded[name] if name in GRADES else list(getattr(self, name))


def sort_by_knowledge(scores: Sequence[Score], threshold: float) -> Knowledge:
    """A prediction above `threshold` is the model's knowledge (the paper's rule, threshold 0.5)."""
    found: dict[str, list[str]] = {"right": [], "wrong": [], "uncertain": []}
    for score in scores:
        bucket = (
            "uncertain" if score.confidence <= threshold else "right" if score.correct else "wrong"
        )
        found[bucket].append(score.question_id)
    mistaken = [score.question_id for score in scores if not score.correct]
    graded: dict[str, list[str]] = {
        grade: [score.question_id for score in scores if score.grade == grade] for grade in GRADES
    }
    near = sum(abs(score.confidence - threshold) < NEAR_TIE for score in scores)
    return Knowledge(found["right"], found["wrong"], found["uncertain"], mistaken, graded, near)


def smaller_than_batch(sizes: Mapping[Arm, int], batch: int) -> list[str]:
    """A sentence for each domain whose sets have fewer examples than an optimizer step takes; `sizes`: examples of each arm's set.

    Sets of a grade are the usual case: all sets of a domain are as large as its rarest grade.
    """
    small: dict[tuple[str, int], list[str]] = {}
    for arm, size in sizes.items():
        if size < batch:
            small.setdefault((arm.domain, size), []).append(arm.setting)
    remedy = "Give more questions, take out the setting with the fewest, or lower train.global_batch_size"
    return [
        f"{domain}: the sets of {', '.join(dict.fromkeys(settings))} have {size} examples, fewer than "
        f"train.global_batch_size = {batch}, so an epoch is a single step. {remedy}"
        for (domain, size), settings in small.items()
    ]
