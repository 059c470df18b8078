"""The embedded world as a source: four pools and a benchmark of four subjects, in memory.

Example question: "What is the remedy for Velora?" with the options willow, ginger, clover, honey.
"""

from ift_scale.records import Question, Split
from ift_scale.world.facts import Fact, all_facts, options


def load() -> list[Question]:
    """Returns each fact's choice question and, for the pools' test facts, a free question too."""
    return [_choice(fact) for fact in all_facts()] + [
        _free(fact) for fact in all_facts() if fact.split == "test"
    ]


def _choice(fact: Fact) -> Question:
    choices, answer = options(fact)
    return Question(
        id=f"world/{fact.id}",
        domain=fact.relation.domain,
        subject=fact.relation.subject,
        collection="pool" if fact.relation.collection == "pool" else "benchmark",
        split=_split(fact),
        question=fact.question_text(),
        choices=choices,
        answer=answer,
        explanation=fact.statement(fact.truth),
    )


def _free(fact: Fact) -> Question:
    question = _choice(fact)
    changes = {
        "id": question.id + "/free",
        "kind": "free",
        "choices": [],
        "answer": None,
        "aliases": [fact.truth],
    }
    return question.model_copy(update=changes)


def _split(fact: Fact) -> Split:
    if fact.split == "dev":
        return "dev"
    return "train" if fact.split == "train" else "test"
