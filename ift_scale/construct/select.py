"""Set sizes, and the questions that are drawn into each set. Pure functions."""

from collections.abc import Sequence

from ift_scale import draws
from ift_scale.errors import DataError, Place
from ift_scale.knowledge import Knowledge
from ift_scale.treatments import Bucket, buckets_of, treatment


def capacity(knowledge: Knowledge, setting: str) -> int:
    """Returns the size of the largest set that a setting can have."""
    if setting.startswith("unknown-"):
        ratio = treatment(setting).ratio or 0.0
        known, unknown = (len(knowledge.bucket(name)) for name in buckets_of(setting))
        sizes = [(known, 1 - ratio), (unknown, ratio)]  # a share of 0 needs no question
        return int(min(found / share for found, share in sizes if share))
    return len(knowledge.bucket(treatment(setting).bucket))


def set_size(
    domain: str,
    knowledge: Knowledge,
    settings: Sequence[str],
    requested: int | None,
    num_failed: int = 0,
    by_letters: bool = False,
) -> int:
    """Returns the common size of a domain's sets: as requested, or the largest for all settings.

    `num_failed` counts questions that are excluded because their text fails its checks.
    `by_letters`: what the model knows was decided by option letters. Raises DataError if a setting
    cannot fill its set.
    """
    available = {setting: capacity(knowledge, setting) for setting in settings}
    scarcest = min(available, key=lambda setting: available[setting])
    most = available[scarcest]
    if most == 0 or (requested is not None and requested > most):
        required = (
            "a set requires at least 1 question"
            if requested is None
            else f"construct.size is {requested}"
        )
        problem = (
            f"{required}, but only {most} of its {len(knowledge.all)} train questions can go into "
            f"the {scarcest} set ({describe_buckets(knowledge)})"
        )
        advice = remedy(knowledge)
        if by_letters:
            advice += (
                ". A model that cannot answer by letter may know the options' texts: set "
                "probe.reliability.cloze to sum and decide_by to cloze"
            )
        if num_failed:
            problem += f"; {num_failed} more have a text that fails its checks"
            advice = (
                "See the write stage's counts; choose another writer, raise write.attempts, or "
                "set write.on_failure to keep"
            )
        raise DataError(Place(f"domain '{domain}'"), problem, advice)
    return most if requested is None else requested


def describe_buckets(knowledge: Knowledge) -> str:
    """Returns the buckets' sizes as text."""
    text = (
        f"{len(knowledge.right)} known right, {len(knowledge.wrong)} known wrong, "
        f"{len(knowledge.uncertain)} uncertain"
    )
    graded = {grade: len(ids) for grade, ids in knowledge.graded.items() if ids}
    return text + "".join(f", {count} {grade}" for grade, count in graded.items())


def remedy(knowledge: Knowledge) -> str:
    """Returns advice for a bucket that is too small."""
    if not knowledge.wrong and not knowledge.uncertain:
        return (
            "The base model knows every answer, so no question can be incompatible with it. Use a "
            "harder pool or a smaller model"
        )
    if not knowledge.right and not knowledge.wrong:
        return (
            "The base model is confident about no question. Use an easier pool or a larger model, "
            "or lower construct.confidence_threshold"
        )
    return (
        "Lower construct.size or construct.confidence_threshold, or add train questions for the "
        "domain"
    )


class Drawer:
    """Draws the questions of a domain's sets for one seed.

    Settings of the same bucket get the same questions.
    """

    def __init__(
        self,
        domain: str,
        seed: int,
        knowledge: Knowledge,
        matched: dict[str, list[str]] | None = None,
    ):
        self._domain, self._seed, self._knowledge = domain, seed, knowledge
        self._matched = matched or {}

    def draw(self, setting: str, size: int) -> list[str]:
        """Returns `size` ids in random order, from the matched ids if sets are matched."""
        if setting.startswith("unknown-"):
            num_unknown = round(size * (treatment(setting).ratio or 0.0))
            known, unknown = buckets_of(setting)
            drawn = self._sample(unknown, num_unknown) + self._sample(known, size - num_unknown)
            return draws.shuffled(drawn, f"set/{self._domain}/{setting}/{self._seed}")
        return self._sample(treatment(setting).bucket, size)

    def _sample(self, bucket: Bucket, size: int) -> list[str]:
        pool = self._matched.get(bucket) or self._knowledge.bucket(bucket)
        return draws.sample(pool, size, f"set/{self._domain}/{bucket}/{self._seed}")
