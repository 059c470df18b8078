"""A chat template as text: conversations are rendered with it, and how it writes an assistant's turn is found by looking at one."""

from collections.abc import Sequence
from datetime import date
from functools import cached_property
from typing import Any, NamedTuple

from jinja2 import TemplateError

from ift_scale.errors import DataError, Place
from ift_scale.inference.prompts import TEMPLATES
from ift_scale.records import Message

# Some templates write the day's date: the same day always, so that evaluation asks from the prompt that training showed.
_DAY = date(2024, 7, 26)
_MARK = "Mark"


class Turn(NamedTuple):
    """An assistant's turn behind the generation prompt: `forced` text (an empty block of thoughts, say), `separator` (a space or
    nothing), the content, `closing`."""

    forced: str
    separator: str
    closing: str


class ChatTemplate:
    """One of TEMPLATES, or with the name `model` the tokenizer's own; DataError where it has none."""

    def __init__(self, tokenizer: Any, name: str):
        self._tokenizer, self.name = tokenizer, name
        if name == "model" and not tokenizer.chat_template:
            remedy = "Set evaluate.template to vicuna or chatml, or put the model's chat_template.jinja beside its tokenizer"
            raise DataError(self._place, "the tokenizer has none, which evaluate.template = model would take", remedy)
        self.source: str = TEMPLATES[name] if name in TEMPLATES else tokenizer.get_chat_template()

    @property
    def _place(self) -> Place:
        return Place(self._tokenizer.name_or_path, field="chat_template")

    def _text(self, messages: Sequence[Message], generation: bool = False) -> str:
        """ValueError where the template refuses the conversation (a system role, say)."""
        try:
            return self._tokenizer.apply_chat_template(
                [message.model_dump() for message in messages],
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=generation,
                strftime_now=_DAY.strftime,
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error

    @cached_property
    def turn(self) -> Turn:
        asked = [Message(role="user", content="Question")]
        prompt, text = self._text(asked, True), self._text([*asked, Message(role="assistant", content=_MARK)])
        opening, found, closing = text[len(prompt) :].partition(_MARK)
        if not text.startswith(prompt) or not found:
            problem = f"an assistant's turn does not begin as its generation prompt does: {prompt[-40:]!r} in {text!r}"
            raise DataError(self._place, problem, "Set evaluate.template to vicuna or chatml")
        forced = opening.rstrip(" ")
        return Turn(forced, opening[len(forced) :], closing)

    def render(self, messages: Sequence[Message], generation: bool = False) -> str:
        """The conversation; with `generation`, up to where the assistant's own words begin."""
        return self._text(messages, generation) + (self.turn.forced if generation else "")

    def span(self, text: str, messages: Sequence[Message], number: int) -> tuple[int, int]:
        """(start, end) in `text`, the rendered conversation, of what the assistant says in message `number` with the mark that ends
        its turn; white space behind that is not in it.

        ValueError where the text before it is not what evaluation would ask from.
        """
        prompt = self._text(messages[:number], True)
        if not text.startswith(prompt):
            raise ValueError(f"the prompt of {messages[number].content[:40]!r} is not how the conversation begins")
        forced = self.turn.forced if text.startswith(prompt + self.turn.forced) else ""  # Qwen3 writes it in the last turn only
        start = len(prompt) + len(forced)
        end = max(start, len(text[: self._turn_end(text, start, messages[: number + 1])].rstrip()))
        eos = self._tokenizer.eos_token
        return start, end + (len(eos) if text.startswith(eos, end) else 0)  # some write it between turns, and none at the end

    def _turn_end(self, text: str, start: int, messages: Sequence[Message]) -> int:
        """Where the turn of the last of `messages`, whose words begin at `start`, ends in the whole conversation's text."""
        so_far, closing = self._text(messages), self.turn.closing
        if text.startswith(so_far):
            return len(so_far)
        found = text.find(closing, start) if closing.strip() else -1
        if found < 0:
            raise ValueError(f"the end of the assistant's turn {messages[-1].content[:40]!r} is not to be found")
        return found + len(closing)
