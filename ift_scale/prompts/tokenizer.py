"""From text to token ids: start tokens exactly once, chat turns split at token boundaries.

`scoring.options` has the option letters.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, Place, shorten
from ift_scale.io import text_file
from ift_scale.prompts.chat import ChatTemplate
from ift_scale.prompts.controls import ChatText, Controls
from ift_scale.records import Message

# Few-shot prefixes end with this. What follows is tokenised after these two characters only.
_ANCHOR = "\n\n"
_TOKENIZER_FILES = (
    "Put the model's tokenizer.json (or tokenizer.model) and tokenizer_config.json there"
)
_OF_PYTHON = re.compile(r"<class '(.*?)'>")
_CHECK_EVERY = 512
_TOO_LONG_WARNING = "sequence-length-is-longer-than-the-specified-maximum"
_CACHED_WORDS = 400_000


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """Returns the longest list that all rows begin with."""
    # All rows are between the smallest and the largest, so these two share what all share.
    first, last = min(rows), max(rows)
    num_shared = next(
        (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[:num_shared]


@dataclass
class Prefix:
    """A prompt's beginning and its token ids.

    `seen` counts the texts tokenised after it; `shorter` is the prefix without its last line.
    """

    text: str
    ids: list[int]
    seen: int = 0
    shorter: "Prefix | None" = None


class PromptTokenizer:
    """A model folder's tokenizer as probing, training and evaluation use it.

    Raises DataError if the folder's tokenizer cannot be loaded.
    """

    def __init__(self, path: str | Path, trust_remote_code: bool = False):
        from transformers import AutoTokenizer

        self.path = Path(path)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                self.path,
                local_files_only=True,
                # Its class, used if mistral-common is installed, has no chat template.
                mistral_format=False,
                trust_remote_code=trust_remote_code,
            )
        except BaseException as error:  # a damaged file may raise anything, also Rust's panics
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            files = sorted(file.name for file in self.path.glob("*tok*"))
            for name in files:
                if name.endswith(".json"):  # names the line, if it is not JSON
                    text_file.read_object(self.path / name, _TOKENIZER_FILES)
            problem = "has no tokenizer that transformers can load"
            if files and str(error):
                first = _OF_PYTHON.sub(r"\1", str(error).strip().splitlines()[0])
                problem += f"; it reports {shorten(first)}"
            raise DataError(Place(self.path), problem, _TOKENIZER_FILES, files) from error
        # Examples are checked against the model's limit where they are used, or truncated.
        self.tokenizer.deprecation_warnings[_TOO_LONG_WARNING] = True
        longest = self.tokenizer.model_max_length
        if not isinstance(longest, int | float) or isinstance(longest, bool):
            place = Place(self.path / "tokenizer_config.json", field="model_max_length")
            raise DataError(place, "must be a number", _TOKENIZER_FILES, longest)
        self.start = self._start()
        # A start token that also ends texts may occur again.
        self._only_first = set(self.start) - {self.tokenizer.eos_token_id}
        self._anchors: dict[str, list[int]] = {}
        self._chats: dict[str, ChatTemplate] = {}
        self._fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if self._fast is not None:
            self._fast.no_padding()
            self._fast.no_truncation()
            resize = getattr(self._fast.model, "_resize_cache", None)
            if resize is not None:
                resize(_CACHED_WORDS)  # a large pool exceeds the default of 10,000 words
        self.controls = Controls(self.tokenizer, self._fast)

    def _start(self) -> list[int]:
        """Returns the ids that the tokenizer puts before a text.

        BOS in most families, none in some, `[gMASK]<sop>` in GLM. Ids that it adds after a text,
        such as an end of sequence, are excluded.
        """
        whole = self.tokenizer("a").input_ids
        (own,) = self.tokenizer(["a"], add_special_tokens=False).input_ids
        for position in range(len(whole) - len(own) + 1):
            if whole[position : position + len(own)] == own:
                return whole[:position]
        pieces = self.tokenizer.convert_ids_to_tokens(whole)
        problem = f"changes a text when it adds special tokens: 'a' becomes {pieces}"
        raise DataError(
            Place(self.path), problem, "Use the tokenizer.json that the model was published with"
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns token ids of whole texts, each beginning with the start tokens exactly once.

        A plain string is content: a control token that it spells is tokenised as text. In a
        ChatText (from `render`), control tokens written by the template are control tokens.
        """
        return [
            self._with_start(row, text) for row, text in zip(self._plain(texts), texts, strict=True)
        ]

    def whole_prompt(self, prompt: str) -> Callable[[str], list[int]]:
        """Returns a function that tokenises the prompt and an ending as one text."""
        return lambda ending: self.encode([prompt + ending])[0]

    def after_blank_line(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns token ids of a blank line and each text after it, without start tokens."""
        return self._plain([_ANCHOR + text for text in texts])

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns token ids without start tokens, with control tokens as in `encode`."""
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
        """Returns token ids without start tokens; every spelled control token becomes one."""
        if self._fast is not None:
            return [
                encoding.ids
                for encoding in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
            ]
        return self.tokenizer(list(texts), add_special_tokens=False).input_ids

    def _with_start(self, ids: list[int], text: str) -> list[int]:
        own = ids[len(self.start) :] if ids[: len(self.start)] == self.start else ids
        # A second one comes from a template, as in Llama-2's, which writes BOS before each turn.
        again = [token for token in own[: len(self.start)] if token in self._only_first]
        if again:
            raise DataError(
                Place(self.path, field="bos_token"),
                f"{self.tokenizer.convert_ids_to_tokens(again)[0]} occurs a second time inside the"
                f" prompt {shorten(text)}",
                "The chat template writes a token that the tokenizer adds itself; remove it there",
            )
        return self.start + own

    def prefix(self, text: str) -> Prefix:
        """Tokenises a prompt's beginning once, for `encode_after`."""
        return Prefix(text, self._before_a_word(self.encode, text) if text else [])

    @staticmethod
    def _before_a_word(encode: Callable[[Sequence[str]], list[list[int]]], text: str) -> list[int]:
        """Returns the ids of `text` before a word: final line breaks may tokenise differently."""
        return common_prefix(encode([text + "A", text + "B"]))

    def encode_after(
        self, prefix: Prefix, texts: Sequence[str], whole: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """Returns (ids of a beginning, ids after it) per text; together the whole prompt's ids.

        The prefix is tokenised once. This is exact if the tokenizer never joins a line break with a
        visible character after it, as in every known family. The first texts after a prefix and
        every 512th are compared with the whole prompt's ids. A text that begins with white space is
        cut one line earlier. `whole` tokenises every prompt as a whole.
        """
        # Without a blank line at its end, the prefix's last token may merge with the text.
        if not prefix.text.endswith(_ANCHOR) or whole:
            return [self._split(prefix, text) for text in texts]
        # Usual case: tokenise each text after the blank line only and reuse the prefix's ids.
        pairs = self._after_anchor(prefix, texts, _ANCHOR)
        last_line = prefix.text.rstrip("\n").rfind("\n") + 1
        left = [number for number, pair in enumerate(pairs) if pair is None]
        # Texts that change the blank line's tokens: try again after the line before it.
        if left and last_line > 0:
            prefix.shorter = prefix.shorter or self.prefix(prefix.text[:last_line])
            again = self._after_anchor(
                prefix.shorter, [prefix.text[last_line:] + texts[number] for number in left], "\n"
            )
            for number, pair in zip(left, again, strict=True):
                pairs[number] = pair
        return [pair or self._split(prefix, text) for pair, text in zip(pairs, texts, strict=True)]

    def _after_anchor(
        self, prefix: Prefix, texts: Sequence[str], anchor: str
    ) -> list[tuple[list[int], list[int]] | None]:
        """Returns the pairs of `encode_after`, or None for a text that changes the anchor's ids.

        Texts are tokenised after `anchor`, the prefix's last characters.
        """
        if anchor not in self._anchors:
            self._anchors[anchor] = self._before_a_word(self._plain, anchor)
        before = self._anchors[anchor]
        pairs: list[tuple[list[int], list[int]] | None] = []
        for row, text in zip(self._plain([anchor + text for text in texts]), texts, strict=True):
            if text[:1].isspace() or row[: len(before)] != before:
                pairs.append(None)
                continue
            ids = row[len(before) :]
            prefix.seen += 1
            if prefix.seen <= 2 or prefix.seen % _CHECK_EVERY == 0:
                self._compare(prefix, ids, text)
            pairs.append((prefix.ids, ids))
        return pairs

    def _split(self, prefix: Prefix, text: str) -> tuple[list[int], list[int]]:
        (ids,) = self.encode([prefix.text + text])
        cut = len(prefix.ids)
        return (prefix.ids, ids[cut:]) if ids[:cut] == prefix.ids and len(ids) > cut else ([], ids)

    def _compare(self, prefix: Prefix, ids: list[int], text: str) -> None:
        if self.encode([prefix.text + text])[0] != prefix.ids + ids:
            raise DataError(
                Place(self.path),
                f"tokenises a few-shot prefix differently before a question: {shorten(text)}",
                "Set whole_prompts to true to tokenise every prompt as a whole",
            )

    def decode(self, ids: list[int]) -> str:
        """Returns the text of token ids without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @cached_property
    def line_end_tokens(self) -> list[int]:
        """The ids that end a one-line answer."""
        return self.ends_at("\n")

    def ends_at(self, mark: str) -> list[int]:
        """Returns the ids that end a text before `mark`: EOS and every token containing it."""
        pieces = (
            self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))]) if mark else []
        )
        ends = [i for i, piece in enumerate(pieces) if mark in piece]
        eos = self.tokenizer.eos_token_id
        return sorted({*ends, *([eos] if eos is not None else [])})

    def chat(self, template: str) -> ChatTemplate:
        """Returns one of TEMPLATES, or for `model` the tokenizer's own chat template."""
        if template not in self._chats:
            self._chats[template] = ChatTemplate(self.tokenizer, template, self.controls.pattern)
        return self._chats[template]

    def render(
        self, messages: Sequence[Message], template: str, generation: bool = False
    ) -> ChatText:
        """Returns the conversation as text; with `generation`, up to where the assistant begins.

        Raises ValueError if the template or the tokenizer cannot represent a message.
        """
        return self.controls.unmask(self.chat(template).render(self._masked(messages), generation))

    def _masked(self, messages: Sequence[Message]) -> list[Message]:
        """Returns the messages with masks for the control tokens that their contents spell."""
        contents = [self.controls.mask(message.content) for message in messages]
        return [
            message if content is message.content else Message(role=message.role, content=content)
            for message, content in zip(messages, contents, strict=True)
        ]

    def example(self, messages: Sequence[Message], template: str) -> tuple[list[int], list[bool]]:
        """Returns the token ids of a conversation and a mask of the supervised ones.

        The assistant's turns are supervised, with the mark that ends them. A conversation that ends
        with the assistant ends with a supervised end of sequence; if the template does not write
        it, it replaces the white space after the last turn. Raises ValueError if an answer's last
        token merges with the template's text after it.
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
        # Only what the assistant says is supervised: the other tokens carry no loss.
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
        """Converts a character span of a masked text to a token span.

        A token that contains the end of the prompt and the beginning of the answer belongs to the
        answer, because the prompt in evaluation ends before it too.
        """
        # One call per text: a batch of two wakes a thread per core, which takes longer than a text.
        (before,) = self.encode([self.controls.unmask(text[: span[0]])])
        through = ids
        if span[1] < len(text):
            (through,) = self.encode([self.controls.unmask(text[: span[1]])])
        start = len(common_prefix([ids, before]))
        if ids[: len(through)] != through:
            problem = "the answer's tokens differ from those at the end of a text, in message"
            problem += f" {number + 1}"
            raise ValueError(problem)
        return start, len(through)
