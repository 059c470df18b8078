"""The base model's knowledge of the pools' train questions, computed from its probe results.

It defines the buckets that sets are drawn from. Pure functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ift_scale.records import GRADES, Arm, Score
from ift_scale.treatments import Bucket

NEAR_TIE = 0.02


@dataclass(frozen=True)
class Knowledge:
    """A domain's train questions by what the model knows: lists of ids in the pool's order."""

    right: list[str]
    """Confident predictions of the right option."""
    wrong: list[str]
    """Confident predictions of another option."""
    uncertain: list[str]
    """No option's probability exceeds the confidence threshold."""
    mistaken: list[str]
    """Wrong predictions, confident or not."""
    graded: dict[str, list[str]]
    """Ids by SliCK's grade; empty lists if grades were not requested."""
    near_threshold: int
    """Number of questions whose confidence is within NEAR_TIE of the threshold. Rounding
    differences could move these to another bucket."""

    @property
    def all(self) -> list[str]:
        """All ids of the domain."""
        return [*self.right, *self.wrong, *self.uncertain]

    def bucket(self, name: Bucket) -> list[str]:
        """Returns the ids of a bucket."""
        if name == "any":
            return self.all
        return self.graded[name] if name in GRADES else list(getattr(self, name))


def sort_by_knowledge(scores: Sequence[Score], threshold: float) -> Knowledge:
    """Sorts questions into buckets. A prediction with a confidence above `threshold` counts as
    knowledge (the paper's rule, with threshold 0.5)."""
    buckets: dict[str, list[str]] = {"right": [], "wrong": [], "uncertain": []}
    for score in scores:
        bucket = (
            "uncertain" if score.confidence <= threshold else "right" if score.correct else "wrong"
        )
        buckets[bucket].append(score.question_id)
    mistaken = [score.question_id for score in scores if not score.correct]
    graded: dict[str, list[str]] = {
        grade: [score.question_id for score in scores if score.grade == grade] for grade in GRADES
    }
    near = sum(abs(score.confidence - threshold) < NEAR_TIE for score in scores)
    return Knowledge(
        buckets["right"], buckets["wrong"], buckets["uncertain"], mistaken, graded, near
    )


def smaller_than_batch(sizes: Mapping[Arm, int], batch: int) -> list[str]:
    """Returns a warning for each domain whose sets have fewer examples than an optimizer step.

    `sizes`: number of examples of each arm's set. Sets by grade are the usual case: all sets of a
    domain are as small as the one of its rarest grade.
    """
    small: dict[tuple[str, int], list[str]] = {}
    for arm, size in sizes.items():
        if size < batch:
            small.setdefault((arm.domain, size), []).append(arm.setting)
    remedy = "Add questions, remove the setting with the fewest, or lower train.global_batch_size"
    return [
        f"{domain}: the sets of {', '.join(dict.fromkeys(settings))} have {size} examples, fewer "
        f"than train.global_batch_size = {batch}, so an epoch is a single step. {remedy}"
        for (domain, size), settings in small.items()
    ]
