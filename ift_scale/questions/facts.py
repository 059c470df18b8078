"""Facts about countries, money, languages, chemical elements and airports as a source.

Example: "What is the capital of Botswana?" with the options Francistown, Harare, Gaborone, Mbabane.

The facts are in `facts.jsonl`, the wording of each relation in `facts_relations.json`; sources and
licenses are in `facts_sources.md`. Each fact is a choice question and a free question. The entity
of a fact, such as a country, is in one split only, in every domain. `python -m
benchmarks.make_facts` makes the file.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from typing import Any

from pydantic import Field

from ift_scale import draws
from ift_scale.config import FactsSource
from ift_scale.records import Collection, Question, Record, Split


class FactRelation(Record):
    """What is asked about an entity. `free_question` replaces `question` without options."""

    domain: str
    collection: Collection
    entity: str
    question: str
    free_question: str | None = None
    explanation: str


class StoredFact(Record):
    """`key` names the entity, `subject` what the question mentions, `others` the wrong options."""

    relation: str
    key: str
    subject: str
    answer: str
    others: list[str]
    aliases: list[str] = Field(default_factory=list)
    split: Split

    @property
    def id(self) -> str:
        return f"facts/{self.relation}/{self.key}"


def load(source: FactsSource, seed: int) -> Iterator[Question]:
    """Yields the choice question and the free question of each fact that the limits keep."""
    known = relations()
    groups: dict[tuple[str, Split], list[StoredFact]] = defaultdict(list)
    for fact in facts():
        relation = known[fact.relation]
        if source.domains is None or relation.domain in source.domains:
            part = relation.domain if relation.collection == "pool" else fact.relation
            groups[part, fact.split].append(fact)
    for (part, split), listed in groups.items():
        limit = _limit(source, known[listed[0].relation].collection, split)
        kept = {fact.id for fact in listed}
        if limit is not None and limit < len(listed):
            kept = set(draws.sample(kept, limit, f"{seed}/{part}/{split}"))
        for fact in listed:
            if fact.id in kept:
                yield _choice(fact, known[fact.relation])
                yield _free(fact, known[fact.relation])


def _limit(source: FactsSource, collection: Collection, split: Split) -> int | None:
    if collection == "benchmark":
        return source.max_per_subject if split == "test" else None
    return {"train": source.max_train, "test": source.max_test}.get(split)


@lru_cache(maxsize=1)
def relations() -> dict[str, FactRelation]:
    listed: dict[str, Any] = json.loads(_text("facts_relations.json"))
    return {name: FactRelation.model_validate(relation) for name, relation in listed.items()}


@lru_cache(maxsize=1)
def facts() -> list[StoredFact]:
    return [StoredFact.model_validate_json(line) for line in _text("facts.jsonl").splitlines()]


def _text(name: str) -> str:
    return (resources.files("ift_scale.questions") / name).read_text(encoding="utf-8")


def _choice(fact: StoredFact, relation: FactRelation) -> Question:
    choices = draws.shuffled([fact.answer, *fact.others], f"options/{fact.id}")
    return Question(
        id=fact.id,
        domain=relation.domain,
        subject=fact.relation,
        collection=relation.collection,
        split=fact.split,
        question=relation.question.format(subject=fact.subject),
        choices=choices,
        answer=choices.index(fact.answer),
        explanation=relation.explanation.format(subject=fact.subject, answer=fact.answer),
    )


def _free(fact: StoredFact, relation: FactRelation) -> Question:
    changes = {
        "id": f"{fact.id}/free",
        "kind": "free",
        "question": (relation.free_question or relation.question).format(subject=fact.subject),
        "choices": [],
        "answer": None,
        "aliases": fact.aliases or [fact.answer],
    }
    return _choice(fact, relation).model_copy(update=changes)
