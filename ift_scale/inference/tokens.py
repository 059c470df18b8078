"""From text to token ids: BOS exactly once, chat turns split at token borders, option letters by token id.

An option letter's token depends on what stands before it (`Answer:A` and `ASSISTANT: A` end in different tokens in most
vocabularies), so it is read off the tokenised prompt with the letter behind it, never looked up by itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, Place
from ift_scale.inference.prompts import ANSWER_SEPARATOR, TEMPLATES
from ift_scale.records import LETTERS, Message

_TAIL_CHARACTERS = 16


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
        self._letters: dict[tuple[str, int], list[int]] = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts. BOS comes first, once, exactly where the tokenizer itself would put it."""
        ids = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        return [self._with_bos(row) for row in ids]

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if not self.bos or ids[:1] == self.bos else self.bos + ids

    def letters(self, prompt: str, num_choices: int, separator: str) -> list[int]:
        """The token ids of A, B, ... right behind `prompt` + `separator`; DataError unless each is one distinct token."""
        key = (prompt[-_TAIL_CHARACTERS:] + separator, num_choices)
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
                raise DataError(
                    Place(self.path, field=f"option letter {letter}"),
                    f"is not one token of its own behind {prompt[-_TAIL_CHARACTERS:] + separator!r}: the text goes on as {pieces}",
                    "The letters cannot be scored with this tokenizer; choose a model or template where each is one token",
                )
            found.append(behind[0])
        return found

    def render(self, messages: Sequence[Message], template: str, generation: bool = False) -> str:
        """The conversation as text; with `generation`, up to where the assistant begins."""
        return self.tokenizer.apply_chat_template(
            [message.model_dump() for message in messages],
            chat_template=TEMPLATES[template],
            tokenize=False,
            add_generation_prompt=generation,
        )

    def chat_letters(self, prompt: str, num_choices: int, template: str) -> list[int]:
        return self.letters(prompt, num_choices, ANSWER_SEPARATOR[template])

    def example(self, messages: Sequence[Message], template: str) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation and which of them are supervised: the assistant's turns with their end token.

        Raises ValueError where a generation prompt's tokens are not a prefix of the conversation's: then evaluation would
        ask from tokens that training never showed.
        """
        (ids,) = self.encode([self.render(messages, template)])
        supervised = [False] * len(ids)
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt, full = self.encode(
                [self.render(messages[:number], template, True), self.render(messages[: number + 1], template)]
            )
            if full[: len(prompt)] != prompt or ids[: len(full)] != full:
                raise ValueError(
                    f"the tokens of the prompt are not a prefix of the conversation's around {messages[number].content[:40]!r}"
                )
            supervised[len(prompt) : self._turn_end(full)] = [True] * (self._turn_end(full) - len(prompt))
        return ids, supervised

    def _turn_end(self, ids: list[int]) -> int:
        """Where the last end-of-sequence token stands, plus one: what follows (a newline, say) is not supervised."""
        eos = self.tokenizer.eos_token_id
        return len(ids) - ids[::-1].index(eos) if eos in ids else len(ids)
