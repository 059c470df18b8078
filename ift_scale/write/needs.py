"""Determines the texts that the sets need. Pure functions.

The settings alone determine the kinds of texts (`requirements`). The base model's knowledge
determines the questions they are for (`needs`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from ift_scale.config import Config
from ift_scale.config.construct import ConstructConfig
from ift_scale.knowledge import Knowledge, sort_by_knowledge
from ift_scale.prompts.texts import AuthorGroup
from ift_scale.records import Score, TextKind
from ift_scale.treatments import Bucket, Treatment, asks_questions, buckets_of, treatment

Role = Literal["external", "own", "contexts", "paraphrases"]
"""The section of the write settings that configures the writer."""


class Requirement(NamedTuple):
    """One kind of text for the questions of some buckets.

    `of_known`: only for questions known right (True), only for the others (False), or all (None).
    """

    kind: TextKind
    buckets: tuple[Bucket, ...]
    of_known: bool | None
    target: Literal["gold", "predicted"] | None
    author: AuthorGroup


class Need(NamedTuple):
    """One text. `target` is the option that an explanation explains; others have none."""

    question_id: str
    kind: TextKind
    target: int | None
    author: AuthorGroup

    @property
    def role(self) -> Role:
        """The section of the write settings that configures this text's writer."""
        if self.kind == "context":
            return "contexts"
        if self.kind == "paraphrase":
            return "paraphrases"
        return "own" if self.author == "base_model" else "external"


def requirements(config: Config) -> list[Requirement]:
    """Returns the kinds of texts that the settings require, without repetition.

    The authors' official sets need none, because they contain their texts.
    """
    construct = config.construct
    settings = construct.all_settings() if construct.official is None else []
    required: list[Requirement] = []
    for setting in settings:
        required += _of_setting(construct, treatment(setting), buckets_of(setting))
    if config.learnt.on and config.write.paraphrases.kind != "dataset":
        required += [
            Requirement("paraphrase", buckets_of(setting), None, None, "external")
            for setting in settings
            if asks_questions(setting)
        ]
    return list(dict.fromkeys(required))


def _of_setting(
    construct: ConstructConfig, treated: Treatment, buckets: tuple[Bucket, ...]
) -> Iterable[Requirement]:
    if not treated.questions:
        return
    if construct.response == "letter_text_explanation":
        # Questions that are left out or refused need no explanation.
        of_known = True if treated.unknown in ("left out", "refused") else None
        for target in _targets(treated):
            by_model = treated.own_words or target == "predicted"
            author: AuthorGroup = "base_model" if by_model else "external"
            if construct.matching.author != "paper":
                author = construct.matching.author
            yield Requirement("explanation", buckets, of_known, target, author)
    if treated.context:
        yield Requirement("context", buckets, None, None, "external")
    if treated.unknown == "with context":
        yield Requirement("context", buckets, False, None, "external")


def _targets(treated: Treatment) -> list[Literal["gold", "predicted"]]:
    if not treated.name.startswith("mixture-") or treated.ratio is None:
        return [] if treated.target == "random" else [treated.target]
    gold: list[Literal["gold", "predicted"]] = ["gold"] if treated.ratio < 1 else []
    return [*gold, "predicted"] if treated.ratio > 0 else gold


def roles(required: Iterable[Requirement]) -> set[Role]:
    """Returns the roles of all writers that may be needed."""
    return {Need("", requirement.kind, None, requirement.author).role for requirement in required}


def needs(
    construct: ConstructConfig, required: Sequence[Requirement], scores: Mapping[str, Score]
) -> list[Need]:
    """Returns each needed text once, domain by domain, in the order of the pool."""
    by_domain: dict[str, list[Score]] = {}
    for score in scores.values():
        in_pool = (score.collection, score.split, score.kind) == (
            "pool",
            "train",
            construct.questions,
        )
        if in_pool and (construct.domains is None or score.domain in construct.domains):
            by_domain.setdefault(score.domain, []).append(score)
    needed: list[Need] = []
    for domain_scores in by_domain.values():
        knowledge = sort_by_knowledge(domain_scores, construct.confidence_threshold)
        for requirement in required:
            needed += [_need(scores[id], requirement) for id in _ids(knowledge, requirement)]
    return list(dict.fromkeys(needed))


def _ids(knowledge: Knowledge, requirement: Requirement) -> list[str]:
    ids = [id for bucket in requirement.buckets for id in knowledge.bucket(bucket)]
    if requirement.of_known is None:
        return ids
    known = set(knowledge.right)
    return [id for id in ids if (id in known) == requirement.of_known]


def _need(score: Score, requirement: Requirement) -> Need:
    target = {"gold": score.answer, "predicted": score.prediction}.get(requirement.target or "")
    return Need(score.question_id, requirement.kind, target, requirement.author)
