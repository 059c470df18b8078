"""From text to token ids: start tokens exactly once, chat turns split at token borders. `inference.options` has the letters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, Place, shorten
from ift_scale.prompts import served
from ift_scale.prompts.chat import ChatTemplate
from ift_scale.prompts.controls import ChatText, Controls
from ift_scale.records import Message

# Few-shot prefixes end so; what follows is tokenised behind these two characters alone.
_ANCHOR = "\n\n"
_COMPARED_EACH = 512
_REMEMBERED_WORDS = 400_000


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The longest list with which all rows begin."""
    first, last = (
        min(rows),
        max(rows),
    )  # all others lie between these two, so what these share is everyone's
    num_shared = next(
        (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[:num_shared]


@dataclass
class Prefix:
    """A prompt's beginning and its token ids. `seen` counts the texts tokenised behind it; `shorter` lacks its last line."""

    text: str
    ids: list[int]
    seen: int = 0
    shorter: "Prefix | None" = None


class PromptTokenizer:
    """A model folder's tokenizer as the prober, the trainer and the evaluator use it."""

    def __init__(self, path: str | Path):
        from transformers import AutoTokenizer

        self.path = Path(path)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                self.path,
                local_files_only=True,
                mistral_format=False,  # whose class has no chat template, and is chosen where mistral-common is installed
            )
        except (OSError, ValueError) as error:
            remedy = "Put tokenizer.json (or tokenizer.model) and tokenizer_config.json of the model there"
            raise DataError(
                Place(self.path), f"no tokenizer can be loaded: {error}", remedy
            ) from error
        self.start = self._start()
        # A token that also ends a text may occur again.
        self._only_first = set(self.start) - {self.tokenizer.eos_token_id}
        self._anchors: dict[str, list[int]] = {}
        self._chats: dict[str, ChatTemplate] = {}
        self._fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if self._fast is not None:
            self._fast.no_padding()
            self._fast.no_truncation()
            resize = getattr(self._fast.model, "_resize_cache", None)
            if resize is not None:
                resize(_REMEMBERED_WORDS)  # by default 10,000 words, which a large pool exceeds
        self.controls = Controls(self.tokenizer, self._fast)

    def _start(self) -> list[int]:
        """The ids that the tokenizer itself puts before a text: BOS in most families, none in some, `[gMASK]<sop>` in GLM.

        Those that it puts after a text, such as an end of sequence, are not among them.
        """
        whole = self.tokenizer("a").input_ids
        (own,) = self.tokenizer(["a"], add_special_tokens=False).input_ids
        for place in range(len(whole) - len(own) + 1):
            if whole[place : place + len(own)] == own:
                return whole[:place]
        pieces = self.tokenizer.convert_ids_to_tokens(whole)
        problem = f"changes a text when it adds special tokens: 'a' becomes {pieces}"
        raise DataError(
            Place(self.path), problem, "Use the tokenizer.json that the model was published with"
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts. The start tokens come first, once, exactly as the tokenizer itself would put them.

        A string is content: a control token that it spells is tokenised as text. In a ChatText (as `render` gives it), those that
        the template wrote are control tokens.
        """
        return [
            self._with_start(row, text) for row, text in zip(self._plain(texts), texts, strict=True)
        ]

    def whole_prompt(self, prompt: str) -> Callable[[str], list[int]]:
        """Gives the ids of the prompt followed by an ending, tokenised as one text."""
        return lambda ending: self.encode([prompt + ending])[0]

    def after_blank_line(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of a blank line and each text after it, without start tokens."""
        return self._plain([_ANCHOR + text for text in texts])

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without start tokens, with control tokens as in `encode`."""
        spelling = {
            number: text for number, text in enumerate(texts) if self.controls.spelled_in(text)
        }
        if not spelling:
            return self.control_ids(texts)
        try:
            taken_apart = self.controls.encode(list(spelling.values()))
        except ValueError as error:
            remedy = "Remove it from the text, or convert the tokenizer to tokenizer.json"
            raise DataError(
                Place(self.path), str(error), remedy, next(iter(spelling.values()))
            ) from error
        rows = self.control_ids(
            ["" if number in spelling else text for number, text in enumerate(texts)]
        )
        for number, row in zip(spelling, taken_apart, strict=True):
            rows[number] = row
        return rows

    def control_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without start tokens, where every control token that is spelled is one."""
        if self._fast is not None:
            return [
                found.ids
                for found in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
            ]
        return self.tokenizer(list(texts), add_special_tokens=False).input_ids

    def _with_start(self, ids: list[int], text: str) -> list[int]:
        own = ids[len(self.start) :] if ids[: len(self.start)] == self.start else ids
        # Later ones are a template's, as Llama-2's writes BOS before each turn.
        again = [token for token in own[: len(self.start)] if token in self._only_first]
        if again:
            raise DataError(
                Place(self.path, field="bos_token"),
                f"{self.tokenizer.convert_ids_to_tokens(again)[0]} occurs a second time inside the prompt {shorten(text)}",
                "The chat template writes a token that the tokenizer adds by itself; remove it there",
            )
        return self.start + own

    def prefix(self, text: str) -> Prefix:
        return Prefix(text, self._before_a_word(self.encode, text) if text else [])

    @staticmethod
    def _before_a_word(encode: Callable[[Sequence[str]], list[list[int]]], text: str) -> list[int]:
        """The ids of `text` where a word follows: at the very end two line breaks may be another token than there."""
        return common_prefix(encode([text + "A", text + "B"]))

    def encode_behind(
        self, prefix: Prefix, texts: Sequence[str], whole: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """(ids of a beginning, ids behind it) for each text behind the prefix: together exactly the ids of the whole prompt.

        The prefix is tokenised once. That is exact where the tokenizer never joins a line break with a visible character behind it,
        which holds in every family known; the first texts behind a prefix and every 512th after them are compared with the whole
        prompt's ids. A text that begins with white space is cut a line earlier. `whole` tokenises every prompt whole.
        """
        if not prefix.text.endswith(_ANCHOR) or whole:
            return [self._split(prefix, text) for text in texts]
        found = self._behind(prefix, texts, _ANCHOR)
        last_line = prefix.text.rstrip("\n").rfind("\n") + 1
        left = [number for number, pair in enumerate(found) if pair is None]
        if left and last_line > 0:
            prefix.shorter = prefix.shorter or self.prefix(prefix.text[:last_line])
            again = self._behind(
                prefix.shorter, [prefix.text[last_line:] + texts[number] for number in left], "\n"
            )
            for number, pair in zip(left, again, strict=True):
                found[number] = pair
        return [pair or self._split(prefix, text) for pair, text in zip(found, texts, strict=True)]

    def _behind(
        self, prefix: Prefix, texts: Sequence[str], anchor: str
    ) -> list[tuple[list[int], list[int]] | None]:
        """The pairs of `encode_behind`, from the texts' ids behind the prefix' last characters; None where these change them."""
        if anchor not in self._anchors:
            self._anchors[anchor] = self._before_a_word(self._plain, anchor)
        before = self._anchors[anchor]
        found: list[tuple[list[int], list[int]] | None] = []
        for row, text in zip(self._plain([anchor + text for text in texts]), texts, strict=True):
            if text[:1].isspace() or row[: len(before)] != before:
                found.append(None)
                continue
            ids = row[len(before) :]
            prefix.seen += 1
            if prefix.seen <= 2 or prefix.seen % _COMPARED_EACH == 0:
                self._compare(prefix, ids, text)
            found.append((prefix.ids, ids))
        return found

    def _split(self, prefix: Prefix, text: str) -> tuple[list[int], list[int]]:
        (ids,) = self.encode([prefix.text + text])
        cut = len(prefix.ids)
        return (prefix.ids, ids[cut:]) if ids[:cut] == prefix.ids and len(ids) > cut else ([], ids)

    def _compare(self, prefix: Prefix, ids: list[int], text: str) -> None:
        if self.encode([prefix.text + text])[0] != prefix.ids + ids:
            raise DataError(
                Place(self.path),
                f"tokenises a few-shot prefix otherwise when a question follows: {shorten(text)}",
                "Set whole_prompts to true, so that every prompt is tokenised whole",
            )

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @cached_property
    def line_end_tokens(self) -> list[int]:
        """The ids that end a one-line answer."""
        return self.ends_at("\n")

    def ends_at(self, mark: str) -> list[int]:
        """The ids that end a text before `mark`: the end of the sequence, and every token that holds the mark."""
        pieces = (
            self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))]) if mark else []
        )
        ends = [i for i, piece in enumerate(pieces) if mark in piece]
        eos = self.tokenizer.eos_token_id
        return sorted({*ends, *([eos] if eos is not None else [])})

    def chat(self, template: str) -> ChatTemplate:
        if template not in self._chats:
            self._chats[template] = ChatTemplate(self.tokenizer, template, self.controls.pattern)
        return self._chats[template]

    def render(
        self, messages: Sequence[Message], template: str, generation: bool = False
    ) -> ChatText:
        """The conversation as text; with `generation`, up to where the assistant begins.

        ValueError where the template or the tokenizer cannot take what a message says.
        """
        return self.controls.unmask(self.chat(template).render(self._masked(messages), generation))

    def _masked(self, messages: Sequence[Message]) -> list[Message]:
        """The messages, with masks for the control tokens that their contents spell."""
        contents = [self.controls.mask(message.content) for message in messages]
        return [
            message if content is message.content else Message(role=message.role, content=content)
            for message, content in zip(messages, contents, strict=True)
        ]

    def chat_source(self, template: str) -> str:
        """The template's text for a tokenizer that is given away: `apply_chat_template` with it gives the tokens of `example`."""
        return served.template_source(self, template)

    def example(self, messages: Sequence[Message], template: str) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation and which of them are supervised: the assistant's turns with the mark that ends them.

        A conversation that ends with the assistant ends with the end of the sequence, supervised: where the template does not write
        it there, it is put in place of the white space behind the last turn. Raises ValueError when an answer's last
        token merges with what the template puts after it.
        """
        eos = self.tokenizer.eos_token_id
        if eos is None:
            remedy = "Name the token that ends a text in tokenizer_config.json"
            raise DataError(
                Place(self.path, field="eos_token"),
                "is missing: no answer could learn to end",
                remedy,
            )
        chat, masked = self.chat(template), self._masked(messages)
        text = chat.render(masked)
        (ids,) = self.encode([self.controls.unmask(text)])
        supervised = [False] * len(ids)
        end = 0
        for number, message in enumerate(messages):
            if message.role == "assistant":
                start, end = self._turn(text, ids, chat.span(text, masked, number), number)
                supervised[start:end] = [True] * (end - start)
        if any(supervised):
            chat.check_carried(text, masked)
        if messages[-1].role == "assistant" and ids[end - 1] != eos:
            ids, supervised = [*ids[:end], eos], [*supervised[:end], True]
        return ids, supervised

    def _turn(
        self, text: str, ids: list[int], span: tuple[int, int], number: int
    ) -> tuple[int, int]:
        """From a span of characters of a masked text to one of tokens.

        A token that holds the end of the prompt and the beginning of the answer is the answer's: the prompt that evaluation asks
        from ends before it too.
        """
        before, through = self.encode([self.controls.unmask(text[:place]) for place in span])
        start = len(common_prefix([ids, before]))
        if ids[: len(through)] != through:
            problem = f"the tokens of the answer are not those that it has at the end of a text around message {number + 1}"
            raise ValueError(problem)
        return start, len(through)
