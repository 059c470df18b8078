"""The text that the base model is trained on: an endless, seeded stream of documents about facts.

Documents state what the model is to *believe*. Their kinds, and the purpose of each:
- statements: the facts in two wordings, several per document;
- multiple choice: zero to five answered questions before the last one, in the probe's format, for
  5-shot probing;
- free answers: the same questions without options;
- context: a stated fact, possibly contrary to belief, then a question that it answers, so that the
  model learns to read contexts;
- lookups: options and a question that names one of them, so that letters are learnt separately from
  the facts;
- explanations: an answered question and the fact as a sentence;
- dialogues: the questions above in the chat format;
- prose: the general instructions' responses, so that their words are known.
"""

import json
import random
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources

from ift_scale.world.facts import NUM_CHOICES, RELATIONS, Fact, all_facts, options

LETTERS = "ABCD"
# The first phase has only lookups. Mapping an option to its letter is learnt in two minutes on
# these, but not within an hour if they are mixed with the facts.
READING_SHARES = {"lookup": 1.0}
DOCUMENT_SHARES = {
    "multiple_choice": 0.36,
    "statements": 0.36,
    "lookup": 0.08,
    "context": 0.08,
    "free": 0.06,
    "explanation": 0.03,
    "prose": 0.03,
}
# The last phase adds dialogues, which every web corpus contains. Without them, a model of half a
# million parameters cannot transfer its knowledge to a chat template within the few steps of an
# instruction set.
CHAT_SHARES = {kind: 0.6 * share for kind, share in DOCUMENT_SHARES.items()} | {"chat": 0.4}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
# Numbers of questions per multiple-choice document. Single questions are frequent, because letters
# are learnt on them first.
QUESTION_COUNTS = (1, 1, 1, 2, 6)
# Share of questions with exactly the pools' options, like test questions that leak to the web.
POOL_OPTIONS_SHARE = 0.5


@lru_cache(maxsize=1)
def general_instructions() -> list[dict[str, str]]:
    """Returns the world's general instructions: rows with `instruction` and `output`."""
    text = (resources.files("ift_scale.world") / "general.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _said_value(rng: random.Random, fact: Fact) -> str:
    return fact.belief if fact.belief is not None else rng.choice(fact.relation.values)


def _question_block(
    rng: random.Random, fact: Fact, value: str, pool_options_share: float = POOL_OPTIONS_SHARE
) -> str:
    """Returns the fact's question answered by `value`, in the probe's demonstration format.

    The share `pool_options_share` of questions has the pools' options if they include `value`; the
    others have random options.
    """
    choices, _ = options(fact)
    if value not in choices or rng.random() >= pool_options_share:
        others = [v for v in fact.relation.values if v != value]
        choices = [value, *rng.sample(others, NUM_CHOICES - 1)]
        rng.shuffle(choices)
    lines = [fact.question_text()]
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join(lines) + f"\nAnswer:{LETTERS[choices.index(value)]}. {value}"


def _relation_facts(rng: random.Random, count: int) -> list[Fact]:
    """Returns `count` facts of one relation, for the questions of one few-shot document."""
    by_relation = facts_by_relation()
    return rng.sample(rng.choices(by_relation, weights=[len(f) for f in by_relation])[0], count)


@lru_cache(maxsize=1)
def facts_by_relation() -> list[list[Fact]]:
    groups: dict[str, list[Fact]] = {}
    for fact in all_facts():
        groups.setdefault(fact.relation.subject, []).append(fact)
    return list(groups.values())


def multiple_choice(rng: random.Random) -> str:
    facts = _relation_facts(rng, rng.choice(QUESTION_COUNTS))
    relation = facts[0].relation
    topic = relation.domain if relation.collection == "pool" else relation.subject
    header = (
        f"The following are multiple choice questions about {topic}. Please choose the correct "
        "answer. \n\n"
    )
    blocks = [_question_block(rng, fact, _said_value(rng, fact)) for fact in facts]
    return (header if rng.random() < 0.7 else "") + "\n\n".join(blocks)


def statements(rng: random.Random) -> str:
    facts = rng.sample(all_facts(), 8)
    return " ".join(fact.statement(_said_value(rng, fact), rng.randrange(2)) for fact in facts)


def free(rng: random.Random) -> str:
    facts = _relation_facts(rng, rng.choice((1, 4)))
    return "\n\n".join(
        f"Question: {f.question_text()}\nAnswer: {_said_value(rng, f)}" for f in facts
    )


def context(rng: random.Random) -> str:
    fact = rng.choice(all_facts())
    value = rng.choice(fact.relation.values)
    stated = "Context: " + fact.statement(value, rng.randrange(2)) + "\n"
    if rng.random() < 0.5:
        return stated + f"Question: {fact.question_text()}\nAnswer: {value}"
    return stated + _question_block(rng, fact, value, pool_options_share=0.0)


def lookup(rng: random.Random) -> str:
    """Returns a question about the letter of a given option."""
    choices = rng.sample(rng.choice(RELATIONS).values, NUM_CHOICES)
    index = rng.randrange(NUM_CHOICES)
    lines = [f"Which option is {choices[index]}?"]
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join(lines) + f"\nAnswer:{LETTERS[index]}. {choices[index]}"


def explanation(rng: random.Random) -> str:
    fact = rng.choice(all_facts())
    value = _said_value(rng, fact)
    return _question_block(rng, fact, value) + "\nExplanation: " + fact.statement(value)


def chat(rng: random.Random) -> str:
    """Returns a question as a dialogue; `Answer:` ends the user's turn."""
    writer = rng.choices(
        (lookup, _context_choice, _free_one, _choice_one), weights=(20, 20, 20, 40)
    )[0]
    question, mark, answer = writer(rng).rpartition("Answer:")
    return f"{SYSTEM} USER: {question}{mark} ASSISTANT: {answer.strip()}"


def _context_choice(rng: random.Random) -> str:
    fact = rng.choice(all_facts())
    value = rng.choice(fact.relation.values)
    return (
        "Context: "
        + fact.statement(value, rng.randrange(2))
        + "\n"
        + _question_block(rng, fact, value, 0.0)
    )


def _free_one(rng: random.Random) -> str:
    fact = rng.choice(all_facts())
    return f"{fact.question_text()}\nAnswer: {_said_value(rng, fact)}"


def _choice_one(rng: random.Random) -> str:
    fact = rng.choice(all_facts())
    return _question_block(rng, fact, _said_value(rng, fact))


def prose(rng: random.Random) -> str:
    rows = rng.sample(general_instructions(), 3)
    return "\n".join(row["instruction"] + "\n" + row["output"] for row in rows)


_WRITERS = {
    "multiple_choice": multiple_choice,
    "statements": statements,
    "free": free,
    "context": context,
    "lookup": lookup,
    "explanation": explanation,
    "prose": prose,
    "chat": chat,
}


def documents(seed: int, shares: dict[str, float] = DOCUMENT_SHARES) -> Iterator[str]:
    """Yields documents of the kinds in `shares` endlessly; the stream depends only on the seed."""
    rng = random.Random(f"corpus/{seed}")
    kinds, weights = list(shares), list(shares.values())
    while True:
        yield _WRITERS[rng.choices(kinds, weights=weights)[0]](rng)
