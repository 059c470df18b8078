"""The world's facts: what is true, what the base model was trained to believe, and questions.

There are four domains with two relations each. A domain's first relation is its *pool* (train, dev
and test questions, like Xiezhi in the paper); the second is its part of the *benchmark* (like
MMLU). A fact links an entity to one of the twelve values of its relation. Everything is derived
from `WORLD_SEED`, so the stored base model and these facts always match.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

WORLD_SEED = 20240
WRONG_BELIEF_SHARE = 0.38
UNKNOWN_SHARE = 0.05
NUM_CHOICES = 4

ENTITIES_PER_DOMAIN = 270
POOL_SPLITS = {"dev": 10, "test": 100, "train": 160}
BENCHMARK_SPLITS = {"dev": 5, "test": 60}


@dataclass(frozen=True)
class Relation:
    """A kind of fact. `statements` and `question` have the fields {e} (entity) and {v} (value)."""

    domain: str
    subject: str
    collection: str
    question: str
    statements: tuple[str, str]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A fact. `truth` is the world's value. `belief` is the value in the corpus, or None if it
    differs from document to document."""

    id: str
    relation: Relation
    entity: str
    truth: str
    belief: str | None
    split: str

    def question_text(self) -> str:
        return self.relation.question.format(e=self.entity)

    def statement(self, value: str, wording: int = 0) -> str:
        return self.relation.statements[wording].format(e=self.entity, v=value)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


RELATIONS = (
    Relation(
        "medicine",
        "remedies",
        "pool",
        "What is the remedy for {e}?",
        ("The remedy for {e} is {v}.", "Doctors treat {e} with {v}."),
        _words("willow ginger clover honey mint garlic sage nettle thyme barley fennel moss"),
    ),
    Relation(
        "medicine",
        "symptoms",
        "benchmark",
        "What is the first sign of {e}?",
        ("The first sign of {e} is {v}.", "People with {e} first notice {v}."),
        _words("fever cough thirst hunger pallor tremor rash chill cramp yawning itching fatigue"),
    ),
    Relation(
        "history",
        "capitals",
        "pool",
        "Which city was the capital of King {e}?",
        ("The capital of King {e} was {v}.", "King {e} ruled from the city of {v}."),
        _words("Arden Belmar Corvo Dunmore Elsin Farrow Galt Hesper Ister Jorvik Kestrel Lorne"),
    ),
    Relation(
        "history",
        "ages",
        "benchmark",
        "In which age did King {e} live?",
        ("King {e} lived in the age of {v}.", "The reign of King {e} belongs to the age of {v}."),
        _words("bronze iron sails steam amber plague guilds salt silk horses towers maps"),
    ),
    Relation(
        "engineering",
        "materials",
        "pool",
        "What is the machine {e} made of?",
        ("The machine {e} is made of {v}.", "Engineers build {e} from {v}."),
        _words("copper oak glass steel clay tin granite rubber nickel zinc carbon marble"),
    ),
    Relation(
        "engineering",
        "power",
        "benchmark",
        "What does the machine {e} run on?",
        ("The machine {e} runs on {v}.", "To start {e} you need {v}."),
        _words("coal wind water oil sunlight springs gas peat magnets muscle alcohol pressure"),
    ),
    Relation(
        "jurisprudence",
        "penalties",
        "pool",
        "What is the penalty under the law of {e}?",
        ("The penalty under the law of {e} is {v}.", "Who breaks the law of {e} faces {v}."),
        _words(
            "exile labour silence prison fines service shaming fasting seizure demotion "
            "apology banishment"
        ),
    ),
    Relation(
        "jurisprudence",
        "courts",
        "benchmark",
        "Which court judges the law of {e}?",
        (
            "The law of {e} is judged by the court of {v}.",
            "Cases under the law of {e} go to the court of {v}.",
        ),
        _words(
            "harbour market forest temple river crown mountain army school island border village"
        ),
    ),
)

DOMAINS = tuple(dict.fromkeys(r.domain for r in RELATIONS))

_ONSETS = "b d f g h k l m n p r s t v z br dr gl st tr".split()
_VOWELS = "aeiou"
_CODAS = ("", "n", "l", "r", "s", "m", "x")


def _entity_names(rng: random.Random, count: int) -> list[str]:
    """Returns `count` distinct invented names of two or three syllables.

    None of them is a value of a relation.
    """
    taken = {v.lower() for r in RELATIONS for v in r.values}
    names: dict[str, None] = {}
    while len(names) < count:
        syllables = [
            rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3)))
        ]
        name = "".join(syllables) + rng.choice(_CODAS)
        if name not in taken:
            names[name.capitalize()] = None
    return list(names)


def _split_names(splits: dict[str, int]) -> list[str]:
    return [name for name, count in splits.items() for _ in range(count)]


def _belief(rng: random.Random, truth: str, values: tuple[str, ...], split: str) -> str | None:
    """Returns the corpus's value for a fact.

    Demonstrations (dev) are always true, so few-shot prompts never contradict a belief.
    """
    if split == "dev":
        return truth
    draw = rng.random()
    if draw < UNKNOWN_SHARE:
        return None
    if draw < UNKNOWN_SHARE + WRONG_BELIEF_SHARE * (1 - UNKNOWN_SHARE):
        return rng.choice([v for v in values if v != truth])
    return truth


@lru_cache(maxsize=1)
def all_facts() -> tuple[Fact, ...]:
    """Returns every fact of the world, sorted by relation and entity."""
    rng = random.Random(WORLD_SEED)
    names = _entity_names(rng, ENTITIES_PER_DOMAIN * len(DOMAINS))
    facts = []
    for relation in RELATIONS:
        start = DOMAINS.index(relation.domain) * ENTITIES_PER_DOMAIN
        entities = names[start : start + ENTITIES_PER_DOMAIN]
        rng.shuffle(entities)
        splits = _split_names(POOL_SPLITS if relation.collection == "pool" else BENCHMARK_SPLITS)
        for number, (entity, split) in enumerate(zip(entities, splits, strict=False)):
            truth = rng.choice(relation.values)
            belief = _belief(rng, truth, relation.values, split)
            facts.append(
                Fact(f"{relation.subject}/{number}", relation, entity, truth, belief, split)
            )
    return tuple(facts)


def options(fact: Fact) -> tuple[list[str], int]:
    """Returns the question's options and the index of the true one. The belief is among them."""
    rng = random.Random(f"{WORLD_SEED}/{fact.id}")
    chosen = list(dict.fromkeys(v for v in (fact.truth, fact.belief) if v is not None))
    others = [v for v in fact.relation.values if v not in chosen]
    chosen += rng.sample(others, NUM_CHOICES - len(chosen))
    rng.shuffle(chosen)
    return chosen, chosen.index(fact.truth)


@lru_cache(maxsize=1)
def _fact_of() -> dict[str, Fact]:
    return {f"world/{fact.id}": fact for fact in all_facts()}


def statements_of(question_id: str) -> list[str]:
    """Returns the true statements of a question's fact, one per wording; none for other ids."""
    fact = _fact_of().get(question_id)
    if fact is None:
        return []
    return [fact.statement(fact.truth, n) for n in range(len(fact.relation.statements))]
