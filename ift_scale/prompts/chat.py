"""A chat template as text: conversations are rendered with it, and how it writes an assistant's turn is found by looking at one."""

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

# Some templates write the day's date: the same day always, so that evaluation asks from the prompt that training showed.
_DAY = date(2024, 7, 26)
_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_NOTHING = re.compile(r"(?!)")
_MARK = "Mark"
# Templates of models that can think before they answer read one of these. A line of its own leaves the template as it is.
_SWITCHES = tuple(
    f"{{% set {name} = {value} %}}\n"
    for name in ("enable_thinking", "thinking")
    for value in ("false", "true")
)


class Turn(NamedTuple):
    """An assistant's turn behind the generation prompt: `forced` text (an empty block of thoughts, say), `separator` (a space or
    nothing), the content, `closing`."""

    forced: str
    separator: str
    closing: str


class ChatTemplate:
    """One of TEMPLATES, or with the name `model` the tokenizer's own; DataError where it has none.

    Contents that spell control tokens must be masked (`controls.Controls`), and so are the texts that come out. `controls`
    matches control tokens.
    """

    def __init__(self, tokenizer: Any, name: str, controls: re.Pattern[str] = _NOTHING):
        self._tokenizer, self.name, self._controls = tokenizer, name, controls
        self._own = _DATE_CALL.sub(
            lambda call: json.dumps(_DAY.strftime(call[2])),
            TEMPLATES.get(name) or self._of_tokenizer(),
        )

    def _of_tokenizer(self) -> str:
        remedy = "Set evaluate.template to vicuna or chatml, or put the model's chat_template.jinja beside its tokenizer"
        if not self._tokenizer.chat_template:
            raise DataError(
                self._place,
                "the tokenizer has none, which evaluate.template = model would take",
                remedy,
            )
        try:
            return self._tokenizer.get_chat_template()
        except ValueError as error:  # several templates, none of them the default
            raise DataError(self._place, str(error), remedy) from error

    @property
    def _place(self) -> Place:
        return Place(self._tokenizer.name_or_path, field="chat_template")

    @cached_property
    def source(self) -> str:
        """The template; with thinking switched off or on where its generation prompt goes with its turns only so."""
        fitting = (
            switch + self._own
            for switch in ("", *_SWITCHES)
            if self._turn_of(switch + self._own) is not None
        )
        return next(fitting, self._own)

    def text(
        self, messages: Sequence[Message], generation: bool = False, source: str | None = None
    ) -> str:
        """The conversation in `source` (default: this template), as `apply_chat_template` gives it.

        ValueError where the template refuses the conversation (a system role, say).
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
        """How `source` writes an assistant's turn; None where that does not begin as the generation prompt does."""
        asked = [Message(role="user", content="Question")]
        try:
            prompt = self.text(asked, True, source)
            text = self.text([*asked, Message(role="assistant", content=_MARK)], source=source)
        except ValueError as error:
            raise DataError(
                self._place, str(error), "Set evaluate.template to vicuna or chatml"
            ) from error
        opening, found, closing = text[len(prompt) :].partition(_MARK)
        if not text.startswith(prompt) or not found:
            return None
        forced = opening.rstrip(" ")
        return Turn(forced, opening[len(forced) :], closing)

    @cached_property
    def turn(self) -> Turn:
        found = self._turn_of(self.source)
        if found is None:
            prompt = self.text([Message(role="user", content="Question")], True)
            problem = f"an assistant's turn does not begin as its generation prompt does, which ends in {prompt[-40:]!r}"
            raise DataError(self._place, problem, "Set evaluate.template to vicuna or chatml")
        return found

    def render(self, messages: Sequence[Message], generation: bool = False) -> str:
        """The conversation; with `generation`, up to where the assistant's own words begin."""
        return self.text(messages, generation) + (self.turn.forced if generation else "")

    def served_sources(self) -> Iterator[str]:
        """Templates whose own generation prompt may be the one of `render`, the plainest first."""
        forced = self.turn.forced
        if not forced:
            yield self.source
            return
        yield from (switch + self.source for switch in _SWITCHES)
        # Jinja drops one line break at a template's end, which would be kept before more text.
        yield (
            self.source.removesuffix("\n")
            + f"{{{{ {json.dumps(forced)} if add_generation_prompt else '' }}}}"
        )

    def check_carried(self, text: str, messages: Sequence[Message]) -> None:
        """ValueError where `text`, the rendered conversation, lacks what a message says."""
        for number, message in enumerate(messages, start=1):
            if message.content.strip() not in text:
                raise ValueError(
                    f"the chat template leaves out or changes message {number}, of role {message.role}"
                )

    def span(self, text: str, messages: Sequence[Message], number: int) -> tuple[int, int]:
        """(start, end) in `text`, the rendered conversation, of what the assistant says in message `number` with the mark that ends
        its turn; white space behind that is not in it.

        ValueError where the text before it is not what evaluation would ask from.
        """
        start = self._turn_start(text, messages, number)
        end = max(start, len(text[: self._turn_end(text, start, messages[: number + 1])].rstrip()))
        eos = self._tokenizer.eos_token
        return start, end + (
            len(eos) if text.startswith(eos, end) else 0
        )  # some write it between turns, and none at the end

    def _turn_start(self, text: str, messages: Sequence[Message], number: int) -> int:
        prompt, forced = self.text(messages[:number], True), self.turn.forced
        if text.startswith(prompt):
            return len(prompt) + (len(forced) if text.startswith(forced, len(prompt)) else 0)
        # Qwen3 writes an empty block of thoughts in the last turn only; no prompt ends in an earlier one.
        before, said = self.text(messages[:number]), messages[number].content.strip()
        if (
            number + 1 == len(messages)
            or not said
            or not text.startswith(before)
            or said not in text[len(before) :]
        ):
            raise ValueError(
                f"the prompt of message {number + 1} is not how the conversation begins"
            )
        return text.index(said, len(before))

    def _turn_end(self, text: str, start: int, messages: Sequence[Message]) -> int:
        """Where the turn of the last of `messages`, whose words begin at `start`, ends in the whole conversation's text."""
        so_far, closing = self.text(messages), self._closing_inside
        if text.startswith(so_far):
            return len(so_far)
        found = text.find(closing, start) if closing.strip() else -1
        if found < 0:
            raise ValueError(
                f"the end of the assistant's turn in message {len(messages)} cannot be found"
            )
        return found + len(closing)

    @cached_property
    def _closing_inside(self) -> str:
        """What closes a turn that another follows: it may be less than at the end (Phi-3), or another mark (gpt-oss)."""
        said = [Message(role="user", content="Question"), Message(role="assistant", content=_MARK)]
        _, _, rest = self.text([*said, *said[:1]]).partition(_MARK)
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
