"""Which questions go into which set, from what the base model is known to know. Pure functions."""

import random
from collections.abc import Sequence

from ift_scale.errors import DataError, Place
from ift_scale.knowledge import Knowledge
from ift_scale.records import Question, Score


def set_size(domain: str, knowledge: Knowledge, settings: Sequence[str], requested: int | None) -> int:
    """The common size of a domain's sets: as requested, or the largest that every setting can fill."""
    available = {setting: len(candidates(knowledge, setting)) for setting in settings}
    scarcest = min(available, key=lambda setting: available[setting])
    most = available[scarcest]
    if most == 0 or (requested is not None and requested > most):
        wanted = "a set needs at least 1" if requested is None else f"construct.size asks for {requested}"
        raise DataError(
            Place(f"domain '{domain}'"),
            f"{wanted}, and only {most} of its {sum(map(len, (knowledge.right, knowledge.wrong, knowledge.uncertain)))} train "
            f"questions can go into the {scarcest} set ({len(knowledge.right)} known right, {len(knowledge.wrong)} known wrong, "
            f"{len(knowledge.uncertain)} uncertain)",
            "Lower construct.size or construct.confidence_threshold, or give the domain more train questions",
        )
    return most if requested is None else requested


def candidates(knowledge: Knowledge, setting: str) -> list[str]:
    """Ids that may go into a setting's set; the self-aligning set has the questions of the incompatible one."""
    return knowledge.right if setting == "harmonious" else knowledge.wrong


def draw(knowledge: Knowledge, setting: str, size: int, domain: str, seed: int) -> list[str]:
    """`size` ids. For one seed the incompatible and the self-aligning set hold the same questions."""
    pool = candidates(knowledge, setting)
    name = "right" if pool is knowledge.right else "wrong"
    return random.Random(f"set/{domain}/{name}/{seed}").sample(pool, size)


def target(question: Question, score: Score, setting: str) -> int:
    """The option that the example teaches: the model's own for self-aligning, else the true one."""
    chosen = score.prediction if setting == "self_aligning" else question.answer
    assert chosen is not None
    return chosen
