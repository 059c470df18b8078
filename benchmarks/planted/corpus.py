"""The text the model is trained on: an endless, seeded stream of documents that state the planted beliefs.

The kinds are the embedded world's (`ift_scale.world.corpus`), with real questions and options. A document is a list of segments,
each with the weight of its tokens in the loss: what is asked has none, because a question need not be foretold.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from benchmarks.planted.beliefs import Planted
from ift_scale.prompts.templates import HEADER, open_text, question_text
from ift_scale.records import LETTERS
from ift_scale.world.corpus import SYSTEM

NUM_CHOICES = 4
# A question's answer letter is one token in fifty and the hardest to learn; the words behind it only repeat an option.
LETTER_WEIGHT, REPEATED_WEIGHT, ANSWER_WEIGHT, PROSE_WEIGHT = 5.0, 0.5, 1.0, 0.3
DOCUMENT_SHARES = {
    "multiple_choice": 0.58,
    "free": 0.12,
    "lookup": 0.1,
    "context": 0.1,
    "stated": 0.05,
    "prose": 0.05,
}
# Dialogues come last, so that what is known can be asked for in a chat template too.
CHAT_SHARES = {kind: 0.6 * share for kind, share in DOCUMENT_SHARES.items()} | {"chat": 0.4}
QUESTION_COUNTS = (1, 1, 2, 4, 6)
POOL_ORDER_SHARE = 0.5
HEADER_SHARE = 0.7
MAX_LOOKUP_CHARACTERS = 16
MANY_LOOKUPS_SHARE = 0.5


class Segment(NamedTuple):
    text: str
    weight: float


Document = list[Segment]


def plain_text(document: Document) -> str:
    return "".join(segment.text for segment in document)


def stated(planted: Planted, option: int) -> str:
    """The question with this option as a sentence: in its blank, or behind it."""
    question, choice = planted.question.question.strip(), planted.question.choices[option].strip()
    blank = max(
        (mark for mark in ("_____", "____", "___") if mark in question), key=len, default=""
    )
    return question.replace(blank, choice, 1) if blank else f"{question} {choice.rstrip('.')}."


def _answer(place: int, text: str) -> Document:
    return [Segment(LETTERS[place], LETTER_WEIGHT), Segment(f". {text}", REPEATED_WEIGHT)]


def _topic(planted: Planted) -> tuple[str, str]:
    return planted.question.collection, planted.question.topic


class Corpus:
    """Documents about `planted`, with `general` instructions as prose; every method takes the generator that it draws from."""

    def __init__(self, planted: Sequence[Planted], general: Sequence[dict[str, str]]):
        self.planted, self.general = list(planted), list(general)
        by_topic = sorted(planted, key=_topic)
        self.topics = [list(members) for _, members in groupby(by_topic, key=_topic)]
        options = dict.fromkeys(choice for p in planted for choice in p.question.choices)
        self.short_options = [option for option in options if len(option) <= MAX_LOOKUP_CHARACTERS]
        self._writers: dict[str, Callable[[random.Random], Document]] = {
            "multiple_choice": self.multiple_choice,
            "free": self.free,
            "stated": self.stated,
            "context": self.context,
            "lookup": self.lookup,
            "prose": self.prose,
            "chat": self.chat,
        }

    def documents(self, rng: random.Random, shares: dict[str, float]) -> Iterator[Document]:
        """An endless stream of documents of the kinds in `shares`."""
        kinds, weights = list(shares), list(shares.values())
        while True:
            yield self._writers[rng.choices(kinds, weights)[0]](rng)

    def _some(self, rng: random.Random, count: int) -> list[Planted]:
        """Questions of one topic, as in a few-shot prompt."""
        topic = rng.choices(self.topics, [len(members) for members in self.topics])[0]
        return rng.sample(topic, min(count, len(topic)))

    def _block(
        self,
        rng: random.Random,
        planted: Planted,
        option: int,
        pool_order_share: float = POOL_ORDER_SHARE,
    ) -> Document:
        """The question answered by `option` in the probe's format, in this share with its options as the pool orders them."""
        order = list(range(len(planted.question.choices)))
        if rng.random() >= pool_order_share:
            rng.shuffle(order)
        asked = Segment(question_text(planted.question, order), 0.0)
        return [asked, *_answer(order.index(option), planted.question.choices[option])]

    def multiple_choice(self, rng: random.Random) -> Document:
        members = self._some(rng, rng.choice(QUESTION_COUNTS))
        document = (
            [Segment(HEADER.format(topic=members[0].question.topic), 0.0)]
            if rng.random() < HEADER_SHARE
            else []
        )
        for number, planted in enumerate(members):
            document += [Segment("\n\n", 0.0)] if number else []
            document += self._block(rng, planted, planted.said(rng))
        return document

    def free(self, rng: random.Random) -> Document:
        document: Document = []
        for number, planted in enumerate(self._some(rng, rng.choice((1, 4)))):
            said = planted.question.choices[planted.said(rng)]
            document += [Segment("\n\n", 0.0)] if number else []
            document += [
                Segment(open_text(planted.question), 0.0),
                Segment(f" {said}", ANSWER_WEIGHT),
            ]
        return document

    def stated(self, rng: random.Random) -> Document:
        return [
            Segment("\n".join(stated(p, p.said(rng)) for p in self._some(rng, 3)), PROSE_WEIGHT)
        ]

    def context(self, rng: random.Random) -> Document:
        """A stated fact, possibly contrary to belief, then a question that it answers, with options or without."""
        planted = rng.choice(self.planted)
        option = rng.randrange(len(planted.question.choices))
        context = Segment(f"Context: {stated(planted, option)}\n", 0.0)
        if rng.random() < 0.25:
            said = planted.question.choices[option]
            return [
                context,
                Segment(open_text(planted.question), 0.0),
                Segment(f" {said}", ANSWER_WEIGHT),
            ]
        return [context, *self._block(rng, planted, option, pool_order_share=0.0)]

    def lookup(self, rng: random.Random) -> Document:
        """Which letter stands before a given option; half of the time asked several times of the same options."""
        choices = rng.sample(self.short_options, NUM_CHOICES)
        options = "\n".join(
            f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)
        )
        if rng.random() >= MANY_LOOKUPS_SHARE:
            place = rng.randrange(NUM_CHOICES)
            return [
                Segment(f"Which option is {choices[place]}?\n{options}\nAnswer:", 0.0),
                *_answer(place, choices[place]),
            ]
        document = [Segment(options, 0.0)]
        for place in rng.choices(range(NUM_CHOICES), k=NUM_CHOICES):
            document += [
                Segment(f"\nWhich option is {choices[place]}?\nAnswer:", 0.0),
                *_answer(place, choices[place]),
            ]
        return document

    def prose(self, rng: random.Random) -> Document:
        row = rng.choice(self.general)
        return [Segment(f"{row['instruction']}\n{row['input']}\n{row['output']}", PROSE_WEIGHT)]

    def instruction(self, rng: random.Random) -> Document:
        row = rng.choice(self.general)
        asked = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
        return [Segment(asked, 0.0), Segment(f" {row['output']}", PROSE_WEIGHT)]

    def chat(self, rng: random.Random) -> Document:
        """One of the other documents as a dialogue: what is asked is the user's turn, the answer the assistant's."""
        writer = rng.choices(
            (self._one, self.lookup, self.context, self.instruction), weights=(50, 20, 20, 10)
        )[0]
        document = writer(rng)
        first = max(place for place, segment in enumerate(document) if not segment.weight) + 1
        asked, (head, *tail) = document[:first], document[first:]
        opening = f"{SYSTEM} USER: {plain_text(asked)} ASSISTANT:"
        return [Segment(opening, 0.0), Segment(f" {head.text.strip()}", head.weight), *tail]

    def _one(self, rng: random.Random) -> Document:
        planted = rng.choice(self.planted)
        return self._block(rng, planted, planted.said(rng))
