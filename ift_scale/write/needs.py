"""Which texts the settings of the sets need. Pure functions.

What is asked for follows from the settings alone (`wishes`), which questions that touches from what the model knows (`needs`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from ift_scale.config import ConstructConfig
from ift_scale.knowledge import Knowledge, sort_by_knowledge
from ift_scale.prompts.texts import AuthorGroup, TextKind
from ift_scale.records import Score
from ift_scale.treatments import Bucket, Treatment, buckets_of, treatment

Role = Literal["external", "own", "contexts"]
"""Which section of the write settings says who writes."""


class Wish(NamedTuple):
    """One kind of text for the questions of some buckets. `of_known`: for those known right, the others, or all (None)."""

    kind: TextKind
    buckets: tuple[Bucket, ...]
    of_known: bool | None
    target: Literal["gold", "predicted"] | None
    author: AuthorGroup


class Need(NamedTuple):
    """One text. `target` is the option that an explanation explains; a context has none."""

    question_id: str
    kind: TextKind
    target: int | None
    author: AuthorGroup

    @property
    def role(self) -> Role:
        if self.kind == "context":
            return "contexts"
        return "own" if self.author == "base_model" else "external"


def wishes(construct: ConstructConfig) -> list[Wish]:
    """What the settings ask for, each once; sets of the authors' release bring their texts with them."""
    found: list[Wish] = []
    for setting in construct.all_settings() if construct.official is None else []:
        found += _of_setting(construct, treatment(setting), buckets_of(setting))
    return list(dict.fromkeys(found))


def _of_setting(
    construct: ConstructConfig, treated: Treatment, buckets: tuple[Bucket, ...]
) -> Iterable[Wish]:
    if construct.response == "letter_text_explanation":
        # What is left out or refused needs no explanation.
        of_known = True if treated.unknown in ("left out", "refused") else None
        for target in _targets(treated):
            by_model = treated.own_words or target == "predicted"
            author: AuthorGroup = "base_model" if by_model else "external"
            if construct.matching.author != "paper":
                author = construct.matching.author
            yield Wish("explanation", buckets, of_known, target, author)
    if treated.context:
        yield Wish("context", buckets, None, None, "external")
    if treated.unknown == "with context":
        yield Wish("context", buckets, False, None, "external")


def _targets(treated: Treatment) -> list[Literal["gold", "predicted"]]:
    if not treated.name.startswith("mixture-") or treated.ratio is None:
        return [treated.target]
    return [*(["gold"] if treated.ratio < 1 else []), *(["predicted"] if treated.ratio > 0 else [])]  # type: ignore[list-item]


def roles(asked: Iterable[Wish]) -> set[Role]:
    """The writers that may be needed."""
    return {Need("", wish.kind, None, wish.author).role for wish in asked}


def needs(
    construct: ConstructConfig, asked: Sequence[Wish], scores: Mapping[str, Score]
) -> list[Need]:
    """Each text once, domain by domain, in the order of the pool."""
    by_domain: dict[str, list[Score]] = {}
    for score in scores.values():
        in_pool = (score.collection, score.split, score.kind) == (
            "pool",
            "train",
            construct.questions,
        )
        if in_pool and (construct.domains is None or score.domain in construct.domains):
            by_domain.setdefault(score.domain, []).append(score)
    found: list[Need] = []
    for domain_scores in by_domain.values():
        knowledge = sort_by_knowledge(domain_scores, construct.confidence_threshold)
        for wish in asked:
            found += [_need(scores[id], wish) for id in _ids(knowledge, wish)]
    return list(dict.fromkeys(found))


def _ids(knowledge: Knowledge, wish: Wish) -> list[str]:
    ids = [id for bucket in wish.buckets for id in knowledge.bucket(bucket)]
    if wish.of_known is None:
        return ids
    known = set(knowledge.right)
    return [id for id in ids if (id in known) == wish.of_known]


def _need(score: Score, wish: Wish) -> Need:
    target = {"gold": score.answer, "predicted": score.prediction}.get(wish.target or "")
    return Need(score.question_id, wish.kind, target, wish.author)
