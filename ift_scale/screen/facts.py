"""The facts that a longer answer needs, as choice questions listed by a judge on a server.

The base model is then asked these questions, as in KCA (Wan et al. 2024, arXiv 2401.10768). Lists
are stored as they arrive, so a screen that was stopped asks for the missing ones only.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

from ift_scale.config.screen import JudgeConfig
from ift_scale.errors import DataError, Place
from ift_scale.io.manifests import digest_of
from ift_scale.io.progress import progress
from ift_scale.questions.answers import option_index
from ift_scale.records import LETTERS, Question
from ift_scale.screen.asker import TOPIC
from ift_scale.write.endpoint import Endpoint
from ift_scale.write.prompts import Prompt
from ift_scale.write.store import Store

SECTION = "screen.judge"
_LIST = re.compile(r"\[.*\]", re.DOTALL)
_INSTRUCTION = """Below are an instruction and a response to it. List the facts of world knowledge \
that the response states and that one must know to write it: at most {count}, the most specific \
ones first. Leave out what the instruction itself says, opinions and matters of style.

Write each fact as a multiple-choice question that can be understood without the response, with \
four options of the same kind, of which exactly one is right according to the response. Answer \
with a JSON list only:
[{{"question": "...", "choices": ["...", "...", "...", "..."], "answer": "A"}}]
If the response needs no such fact, answer with [].

Instruction:
{instruction}

Response:
{response}
"""


class JudgedFacts:
    """The questions about the facts of each longer answer. `close` when all are collected."""

    def __init__(self, folder: Path, config: JudgeConfig):
        self.config, self._store = config, Store(folder)
        self.unusable: Counter[str] = Counter()

    def collect(self, questions: Iterator[Question], total: int) -> None:
        """Asks the judge about all `questions`, longer answers, except those already stored.

        Raises EnvironmentProblem if the server cannot be used.
        """
        endpoint = Endpoint(self.config, SECTION)

        def ask(question: Question) -> None:
            prompt = self._prompt(question)
            self._store.add({self._key(prompt): endpoint.text(prompt, 0)})

        with (
            progress("listing facts", total) as bar,
            ThreadPoolExecutor(self.config.concurrency) as pool,
        ):
            missing = (q for q in questions if self._key(self._prompt(q)) not in self._store)
            running: set[Future[None]] = set()
            try:
                while True:
                    room = 2 * self.config.concurrency - len(running)
                    running |= {pool.submit(ask, question) for question in islice(missing, room)}
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        bar.advance()
            finally:
                endpoint.stopping.set()
                for future in running:
                    future.cancel()
        self._store.close()

    def of(self, question: Question) -> list[Question]:
        """Returns the usable questions about a longer answer's facts; others are counted."""
        reply = self._store[self._key(self._prompt(question))]
        return parse(reply, question, self.config.max_facts, self.unusable)

    def _prompt(self, question: Question) -> Prompt:
        text = _INSTRUCTION.format(
            count=self.config.max_facts,
            instruction=question.question,
            response=question.aliases[0],
        )
        return Prompt(question.id, text, True, "")

    def _key(self, prompt: Prompt) -> str:
        settings = {name: getattr(self.config, name) for name in ("model", "temperature", "top_p")}
        return digest_of([settings, self.config.max_tokens, prompt.text])


def parse(reply: str, owner: Question, max_facts: int, unusable: Counter[str]) -> list[Question]:
    """Returns the choice questions in a judge's reply, at most `max_facts`.

    `unusable` counts what cannot be used by reason.
    """
    match = _LIST.search(reply)
    try:
        listed = json.loads(match[0]) if match else None
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list):
        unusable["a reply without a JSON list"] += 1
        return []
    facts = []
    for number, item in enumerate(listed[:max_facts], start=1):
        fact = _fact(item, f"{owner.id}, fact {number}")
        if fact is None:
            unusable["a fact that is no choice question with one answer"] += 1
        else:
            facts.append(fact)
    return facts


def _fact(item: Any, id: str) -> Question | None:
    if not isinstance(item, dict):
        return None
    text, choices = item.get("question"), item.get("choices")
    if not isinstance(text, str) or not text.strip():
        return None
    if not isinstance(choices, list) or not _are_options(choices):
        return None
    try:
        answer = option_index(Place(id), item.get("answer"), choices, "auto")
    except DataError:
        return None
    return Question(
        id=id,
        domain=TOPIC,
        subject="facts",
        collection="pool",
        split="train",
        question=text.strip(),
        choices=[choice.strip() for choice in choices],
        answer=answer,
    )


def _are_options(choices: list[Any]) -> bool:
    if not 2 <= len(choices) <= len(LETTERS):
        return False
    texts = [choice.strip() for choice in choices if isinstance(choice, str) and choice.strip()]
    return len(set(texts)) == len(choices)
