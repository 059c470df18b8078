"""From text to token ids: BOS exactly once, chat turns split at token borders, option letters by token id.

An option letter's token depends on what stands before it (`Answer:A` and `ASSISTANT: A` end in different tokens in most
vocabularies), so it is read off the tokenised prompt with the letter behind it, never looked up by itself.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, Place, shorten
from ift_scale.inference.chat import ChatTemplate
from ift_scale.inference.controls import ChatText, Controls
from ift_scale.records import LETTERS, Message

_SHOWN_CHARACTERS = 16
# Few-shot prefixes end so; what follows is tokenised behind these two characters alone.
_ANCHOR = "\n\n"
_COMPARED_EACH = 512
_REMEMBERED_WORDS = 400_000


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
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError) as error:
            remedy = "Put tokenizer.json (or tokenizer.model) and tokenizer_config.json of the model there"
            raise DataError(Place(self.path), f"no tokenizer can be loaded: {error}", remedy) from error
        plain = self.tokenizer("a").input_ids
        self.bos: list[int] = [plain[0]] if plain and plain[0] == self.tokenizer.bos_token_id else []
        # A token that also ends a turn says nothing about a second beginning.
        self._only_first = self.bos[0] if self.bos and self.bos[0] != self.tokenizer.eos_token_id else None
        self._letters: dict[tuple[str, int], list[int]] = {}
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

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts. BOS comes first, once, exactly where the tokenizer itself would put it.

        A string is content: a control token that it spells is tokenised as text. In a ChatText (as `render` gives it), those that
        the template wrote are control tokens.
        """
        return [self._with_bos(row, text) for row, text in zip(self._plain(texts), texts, strict=True)]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without start tokens, with control tokens as in `encode`."""
        spelling = {number: text for number, text in enumerate(texts) if self.controls.spelled_in(text)}
        if not spelling:
            return self._all_controls(texts)
        try:
            taken_apart = self.controls.encode(list(spelling.values()))
        except ValueError as error:
            remedy = "Remove it from the text, or convert the tokenizer to tokenizer.json"
            raise DataError(Place(self.path), str(error), remedy, next(iter(spelling.values()))) from error
        rows = self._all_controls(["" if number in spelling else text for number, text in enumerate(texts)])
        for number, row in zip(spelling, taken_apart, strict=True):
            rows[number] = row
        return rows

    def _all_controls(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without start tokens, where every control token that is spelled is one."""
        if self._fast is not None:
            return [found.ids for found in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)]
        return self.tokenizer(list(texts), add_special_tokens=False).input_ids

    def _with_bos(self, ids: list[int], text: str) -> list[int]:
        whole = ids if not self.bos or ids[:1] == self.bos else self.bos + ids
        self._check_one_bos(whole[1:], text)
        return whole

    def _check_one_bos(self, behind: list[int], text: str) -> None:
        if self._only_first is not None and self._only_first in behind:
            raise DataError(
                Place(self.path, field="bos_token"),
                f"stands a second time inside the prompt {shorten(text)}",
                "The chat template writes the token that the tokenizer adds by itself; remove it there",
            )

    def prefix(self, text: str) -> Prefix:
        return Prefix(text, self._before_a_word(self.encode, text) if text else [])

    @staticmethod
    def _before_a_word(encode: Callable[[Sequence[str]], list[list[int]]], text: str) -> list[int]:
        """The ids of `text` where a word follows: at the very end two line breaks may be another token than there."""
        first, second = encode([text + "A", text + "B"])
        return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))]

    def encode_behind(self, prefix: Prefix, texts: Sequence[str], whole: bool = False) -> list[tuple[list[int], list[int]]]:
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
            again = self._behind(prefix.shorter, [prefix.text[last_line:] + texts[number] for number in left], "\n")
            for number, pair in zip(left, again, strict=True):
                found[number] = pair
        return [pair or self._split(prefix, text) for pair, text in zip(found, texts, strict=True)]

    def _behind(self, prefix: Prefix, texts: Sequence[str], anchor: str) -> list[tuple[list[int], list[int]] | None]:
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
            self._check_one_bos(ids, text)
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

    def letters(self, prompt: str, num_choices: int, separator: str) -> list[int]:
        """The token ids of A, B, ... right behind `prompt` + `separator`; DataError unless each is one distinct token."""
        key = (prompt[prompt.rfind("\n") + 1 :] + separator, num_choices)
        if key not in self._letters:
            self._letters[key] = self._find_letters(prompt, num_choices, separator)
        return self._letters[key]

    def _find_letters(self, prompt: str, num_choices: int, separator: str) -> list[int]:
        (before,) = self.encode([prompt])
        found: list[int] = []
        for letter in LETTERS[:num_choices]:
            # Answers read "A" or "A. text": the letter must be the same token in both.
            ids, continued = self.encode([prompt + separator + letter, prompt + separator + letter + ". a"])
            behind = ids[len(before) :]
            if ids[: len(before)] != before or len(behind) != 1 or behind[0] in found or continued[: len(ids)] != ids:
                pieces = self.tokenizer.convert_ids_to_tokens(continued[len(before) - 2 :])
                shown = prompt[-_SHOWN_CHARACTERS:] + separator
                raise DataError(
                    Place(self.path, field=f"option letter {letter}"),
                    f"is not one token of its own behind {shown!r}: the text goes on as {pieces}",
                    "The letters cannot be scored with this tokenizer; choose a model or template where each is one token",
                )
            found.append(behind[0])
        return found

    def continuations(self, prompt: str, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text behind `prompt`; DataError where a text changes the ids before it."""
        tail = _ANCHOR + prompt[prompt.rfind("\n") + 1 :]
        before, *wholes = self._plain([tail, *(tail + text for text in texts)])
        for whole, text in zip(wholes, texts, strict=True):
            if whole[: len(before)] != before or len(whole) == len(before):
                pieces = self.tokenizer.convert_ids_to_tokens(whole)
                problem = f"{text!r} has no tokens of its own behind {tail[-_SHOWN_CHARACTERS:]!r}: the text goes on as {pieces}"
                raise DataError(Place(self.path), problem, "Its likelihood cannot be told with this tokenizer; set cloze to false")
        return [whole[len(before) :] for whole in wholes]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @cached_property
    def line_end_tokens(self) -> list[int]:
        """The ids that end a one-line answer."""
        return self.ends_at("\n")

    def ends_at(self, mark: str) -> list[int]:
        """The ids that end a text before `mark`: the end of the sequence, and every token that holds the mark."""
        pieces = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))]) if mark else []
        ends = [i for i, piece in enumerate(pieces) if mark in piece]
        eos = self.tokenizer.eos_token_id
        return sorted({*ends, *([eos] if eos is not None else [])})

    def chat(self, template: str) -> ChatTemplate:
        if template not in self._chats:
            self._chats[template] = ChatTemplate(self.tokenizer, template)
        return self._chats[template]

    def render(self, messages: Sequence[Message], template: str, generation: bool = False) -> ChatText:
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

    def chat_letters(self, prompt: str, num_choices: int, template: str) -> list[int]:
        return self.letters(prompt, num_choices, self.chat(template).turn.separator)

    def chat_source(self, template: str) -> str:
        """The template's text for a tokenizer that is given away: `apply_chat_template` with it gives the tokens of `example`.

        It writes the start tokens, which `encode` puts, and in the generation prompt all that comes before an answer.
        DataError where no form of the template gives these tokens.
        """
        start = json.dumps("".join(self.tokenizer.convert_ids_to_tokens(self.bos)))
        if self.bos == [self.tokenizer.bos_token_id]:
            start = "bos_token"
        # Behind a start token, some tokenizers do not put the space before the first word that they put at a text's start. The
        # comment lets the template begin on a line of its own, as its white space may depend on that.
        starts = ["", *(f"{{{{ {text} }}}}{{# the start of each training example #}}\n" for text in (start, f"{start} + ' '"))]
        for source in self.chat(template).served_sources():
            for before in starts if self.bos else starts[:1]:
                if self._serves(before + source, template):
                    return before + source
        raise DataError(
            Place(self.path, field="chat_template"),
            f"no form of the template '{template}' gives the tokens of training to those who are served the trained model",
            "Set evaluate.template to another",
        )

    def _serves(self, source: str, template: str) -> bool:
        """True if `source`, rendered and tokenised as by transformers, gives our tokens of prompts and conversations."""
        turns = [Message(role="user", content="Question"), Message(role="assistant", content="Answer")] * 2
        for number in range(1, 5):
            generation = turns[number - 1].role == "user"
            (expected,) = self.encode([self.render(turns[:number], template, generation)])
            try:
                (served,) = self._all_controls([self.chat(template).text(turns[:number], generation, source)])
            except ValueError:
                return False
            if served != expected:
                return False
        return True

    def turn_ends(self, template: str) -> list[int]:
        """The ids that end what a trained model says: the end of the sequence, and the control token that closes a turn."""
        first = self._all_controls([self.chat(template).turn.closing.strip()])[0][:1]
        closing = [token for token in first if token in self.controls.ids.values()]
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *closing]))

    def example(self, messages: Sequence[Message], template: str) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation and which of them are supervised: the assistant's turns with the mark that ends them.

        A conversation that ends with the assistant ends with the end of the sequence, supervised: where the template does not write
        it there, it is put in place of the white space behind the last turn. Raises ValueError where a generation prompt's tokens
        are not a prefix of the conversation's: then evaluation would ask from tokens that training never showed.
        """
        eos = self.tokenizer.eos_token_id
        if eos is None:
            remedy = "Name the token that ends a text in tokenizer_config.json"
            raise DataError(Place(self.path, field="eos_token"), "is missing: no answer could learn to end", remedy)
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

    def _turn(self, text: str, ids: list[int], span: tuple[int, int], number: int) -> tuple[int, int]:
        """From a span of characters of a masked text to one of tokens."""
        before, through = self.encode([self.controls.unmask(text[:place]) for place in span])
        if ids[: len(before)] != before or ids[: len(through)] != through:
            problem = f"the tokens of the prompt are not a prefix of the conversation's around message {number + 1}"
            raise ValueError(problem)
        return len(before), len(through)
