"""Invented questions: the form of a pool's questions, about nothing that anybody knows.

In: the pool's train questions. Out: for each, a question with the same frame and as many words, of
which the particular ones are replaced by invented words, with the options of another question of
the domain and an answer drawn at random among them. So a set of them has the prompts, letters and
lengths of other sets, and no fact: the right answer is independent of everything that a model could
know or prefer, and guessing gives one in the number of options.

Words are particular if few questions of the domain have them. This keeps the frame of real
questions ("Which of the following is the ... of ...?") without a list of words, in every language;
in the embedded world, it replaces exactly the entities' names.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from ift_scale import draws
from ift_scale.records import Question

COMMON_SHARE = 0.05
"""Words in at least this share of a domain's questions are kept, if at least two have them."""
_WORD = re.compile(r"[^\W_]+")
_ATTEMPTS = 20


def words_of(text: str) -> set[str]:
    """Returns the distinct words of a text, in lower case."""
    return {word.lower() for word in _WORD.findall(text)}


def invent(pool: Sequence[Question], known: Iterable[Question]) -> dict[str, Question]:
    """Returns the invented counterpart of each choice question, by the question's id.

    `known`: questions whose words must not be invented, such as test questions.
    """
    taken = {
        word
        for q in (*pool, *known)
        for text in (q.question, *q.choices)
        for word in words_of(text)
    }
    invented: dict[str, Question] = {}
    for domain in dict.fromkeys(question.domain for question in pool):
        own = {q.id: q for q in pool if q.domain == domain and q.kind == "choice"}
        inventor = _Inventor([question.question for question in own.values()], taken)
        options = _options_of_others(own)
        for id, question in own.items():
            invented[id] = _counterpart(question, options[id], inventor)
    return invented


def _options_of_others(questions: Mapping[str, Question]) -> dict[str, list[str]]:
    """Returns the options of the next question, in random order, with as many options."""
    found = {}
    by_count: dict[int, list[str]] = {}
    for id in draws.shuffled(questions, "invented/options"):
        by_count.setdefault(len(questions[id].choices), []).append(id)
    for ids in by_count.values():
        for id, other in zip(ids, [*ids[1:], ids[0]], strict=True):
            found[id] = questions[other].choices
    return found


def _counterpart(question: Question, options: list[str], inventor: "_Inventor") -> Question:
    rng = random.Random(f"invented/{question.id}")
    changes = {
        "id": f"invented/{question.id}",
        "question": inventor.rewrite(question.question, rng),
        "choices": options,
        "answer": rng.randrange(len(options)),
        "explanation": None,
    }
    return question.model_copy(update=changes)


class _Inventor:
    """Replaces the particular words of a domain's questions.

    An invented word is as long as the word that it replaces. Its characters follow each other as in
    the domain's own particular words (a Markov chain), so it looks like one of them in any script.
    """

    def __init__(self, texts: Sequence[str], taken: set[str]):
        counts = Counter(word for text in texts for word in words_of(text))
        fewest = max(2, COMMON_SHARE * len(texts))
        self._common = {word for word, count in counts.items() if count >= fewest}
        self._taken = taken
        self._first: list[str] = []
        self._next: dict[str, list[str]] = {}
        for word in sorted(counts.keys() - self._common):
            self._first.append(word[0])
            for one, following in pairwise(word):
                self._next.setdefault(one, []).append(following)

    def rewrite(self, text: str, rng: random.Random) -> str:
        """Returns the text; a word that occurs several times is replaced by the same word."""
        made: dict[str, str] = {}

        def replaced(match: re.Match[str]) -> str:
            word = match[0]
            lower = word.lower()
            if lower in self._common:
                return word
            if lower not in made:
                made[lower] = self._word(len(word), rng)
            new = made[lower]
            return new.upper() if word.isupper() else new.title() if word[0].isupper() else new

        return _WORD.sub(replaced, text)

    def _word(self, length: int, rng: random.Random) -> str:
        """Returns a word of this length that no question has; longer if there is hardly one."""
        attempts = 0
        while True:
            word = rng.choice(self._first)
            while len(word) < length + attempts // _ATTEMPTS:
                word += rng.choice(self._next.get(word[-1]) or self._first)
            if word not in self._taken:
                return word
            attempts += 1
