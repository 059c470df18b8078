"""A chat template as text: renders conversations and locates the assistant's turns in them."""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple

from jinja2 import TemplateError

from ift_scale.errors import DataError, Place
from ift_scale.prompts.templates import TEMPLATES
from ift_scale.records import Message

# Some templates write the date. A fixed day gives evaluation the same prompt as training.
_DAY = date(2024, 7, 26)
_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_NOTHING = re.compile(r"(?!)")
_MARK = "Mark"
# Templates of reasoning models read one of these. On a line of its own it leaves the rest as is.
_SWITCHES = tuple(
    f"{{% set {name} = {value} %}}\n"
    for name in ("enable_thinking", "thinking")
    for value in ("false", "true")
)


class Turn(NamedTuple):
    """An assistant's turn after the generation prompt: the parts around its content.

    `forced` is text such as an empty thinking block, `separator` a space or nothing.
    """

    forced: str
    separator: str
    closing: str


class ChatTemplate:
    """One of TEMPLATES or, named `model`, the tokenizer's own.

    Contents that spell control tokens must be masked (`controls.Controls`), and rendered texts
    contain these masks. `controls` matches control tokens. Raises DataError if the tokenizer has no
    template.
    """

    def __init__(self, tokenizer: Any, name: str, controls: re.Pattern[str] = _NOTHING):
        self._tokenizer, self.name, self._controls = tokenizer, name, controls
        self._own = _DATE_CALL.sub(
            lambda call: json.dumps(_DAY.strftime(call[2])),
            TEMPLATES.get(name) or self._of_tokenizer(),
        )

    def _of_tokenizer(self) -> str:
        remedy = "Set evaluate.template to vicuna or chatml, or put the model's chat_template.jinja"
        remedy += " next to its tokenizer"
        if not self._tokenizer.chat_template:
            raise DataError(
                self._place,
                "the tokenizer has none, but evaluate.template = model uses it",
                remedy,
            )
        try:
            return self._tokenizer.get_chat_template()
        except ValueError as error:  # several templates and no default
            raise DataError(self._place, str(error), remedy) from error

    @property
    def _place(self) -> Place:
        return Place(self._tokenizer.name_or_path, field="chat_template")

    @cached_property
    def source(self) -> str:
        """The template, with thinking switched off or on if only then its turns fit its prompt."""
        fitting = (
            switch + self._own
            for switch in ("", *_SWITCHES)
            if self._turn_of(switch + self._own) is not None
        )
        return next(fitting, self._own)

    def text(
        self, messages: Sequence[Message], generation: bool = False, source: str | None = None
    ) -> str:
        """Returns the conversation as `apply_chat_template` renders it.

        `source` defaults to this template. Raises ValueError if the template refuses the
        conversation, for example a system role.
        """
        try:
            return self._tokenizer.apply_chat_template(
                [message.model_dump() for message in messages],
                chat_template=self.source if source is None else source,
                tokenize=False,
                add_generation_prompt=generation,
                strftime_now=_DAY.strftime,
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error

    def _turn_of(self, source: str) -> Turn | None:
        """Returns how `source` writes an assistant's turn.

        None if the turn does not begin like the generation prompt.
        """
        question = [Message(role="user", content="Question")]
        try:
            prompt = self.text(question, True, source)
            text = self.text([*question, Message(role="assistant", content=_MARK)], source=source)
        except ValueError as error:
            raise DataError(
                self._place, str(error), "Set evaluate.template to vicuna or chatml"
            ) from error
        opening, mark, closing = text[len(prompt) :].partition(_MARK)
        if not text.startswith(prompt) or not mark:
            return None
        forced = opening.rstrip(" ")
        return Turn(forced, opening[len(forced) :], closing)

    @cached_property
    def turn(self) -> Turn:
        """The parts of an assistant's turn; raises DataError if it does not fit the prompt."""
        turn = self._turn_of(self.source)
        if turn is None:
            prompt = self.text([Message(role="user", content="Question")], True)
            problem = "an assistant's turn does not begin like the template's generation prompt,"
            problem += f" which ends in {prompt[-40:]!r}"
            raise DataError(self._place, problem, "Set evaluate.template to vicuna or chatml")
        return turn

    def render(self, messages: Sequence[Message], generation: bool = False) -> str:
        """Returns the conversation; with `generation`, up to the assistant's own words."""
        return self.text(messages, generation) + (self.turn.forced if generation else "")

    def served_sources(self) -> Iterator[str]:
        """Yields templates whose generation prompt may equal `render`'s, the simplest first."""
        forced = self.turn.forced
        if not forced:
            yield self.source
            return
        yield from (switch + self.source for switch in _SWITCHES)
        # Jinja drops one line break at a template's end, but would keep it before more text.
        yield (
            self.source.removesuffix("\n")
            + f"{{{{ {json.dumps(forced)} if add_generation_prompt else '' }}}}"
        )

    def check_carried(self, text: str, messages: Sequence[Message]) -> None:
        """Raises ValueError if `text`, the rendered conversation, lacks a message's content."""
        for number, message in enumerate(messages, start=1):
            if message.content.strip() not in text:
                raise ValueError(
                    f"the chat template drops or changes message {number}, of role {message.role}"
                )

    def span(self, text: str, messages: Sequence[Message], number: int) -> tuple[int, int]:
        """Returns the (start, end) of the assistant's words in message `number` of `text`.

        `text` is the rendered conversation. The span includes the mark that ends the turn and no
        white space after it. Raises ValueError if the text before it differs from evaluation's
        prompt.
        """
        start = self._turn_start(text, messages, number)
        end = max(start, len(text[: self._turn_end(text, start, messages[: number + 1])].rstrip()))
        eos = self._tokenizer.eos_token
        # Some templates write EOS between turns and none at the end.
        return start, end + (len(eos) if text.startswith(eos, end) else 0)

    def _turn_start(self, text: str, messages: Sequence[Message], number: int) -> int:
        prompt, forced = self.text(messages[:number], True), self.turn.forced
        if text.startswith(prompt):
            return len(prompt) + (len(forced) if text.startswith(forced, len(prompt)) else 0)
        # Qwen3 writes an empty thinking block in the last turn only; no prompt ends before others.
        before, content = self.text(messages[:number]), messages[number].content.strip()
        if (
            number + 1 == len(messages)
            or not content
            or not text.startswith(before)
            or content not in text[len(before) :]
        ):
            raise ValueError(
                f"the conversation does not begin with the prompt of message {number + 1}"
            )
        return text.index(content, len(before))

    def _turn_end(self, text: str, start: int, messages: Sequence[Message]) -> int:
        """Returns the end, in the whole conversation, of the turn of the last of `messages`.

        Its words begin at `start`.
        """
        so_far, closing = self.text(messages), self._closing_inside
        if text.startswith(so_far):
            return len(so_far)
        closing_start = text.find(closing, start) if closing.strip() else -1
        if closing_start < 0:
            raise ValueError(
                f"cannot find the end of the assistant's turn in message {len(messages)}"
            )
        return closing_start + len(closing)

    @cached_property
    def _closing_inside(self) -> str:
        """The mark that closes a turn before another one.

        It may be shorter than the last turn's (Phi-3) or a different one (gpt-oss).
        """
        turns = [Message(role="user", content="Question"), Message(role="assistant", content=_MARK)]
        _, _, rest = self.text([*turns, *turns[:1]]).partition(_MARK)
        pieces = re.compile(f"{self._controls.pattern}|.", re.DOTALL)
        at_end, inside = pieces.findall(self.turn.closing), pieces.findall(rest)
        same = "".join(
            a
            for a, _ in takewhile(
                lambda pair: pair[0] == pair[1], zip(at_end, inside, strict=False)
            )
        )
        if same.strip():
            return same
        first = self._controls.match(rest, len(rest) - len(rest.lstrip()))
        return rest[: first.end()] if first else ""
