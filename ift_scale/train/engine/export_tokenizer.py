"""Exports the tokenizer with an arm's weights, so that chat and further training use our tokens.

In: the base model's folder and the template of training. Out: the base model's tokenizer files,
byte for byte except for the chat template and a pad token that equals the end of the sequence, and
a generation config that stops where answers end. `check` loads the exported files and compares
their tokens with those of training.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from ift_scale.errors import DataError, Place
from ift_scale.prompts import served
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Example, Message

# Copied, because transformers' save_pretrained loses settings (such as sentencepiece's `legacy`).
_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
_NUM_COMPARED = 64


@dataclass(frozen=True)
class ExportedTokenizer:
    """The tokenizer of an exported model.

    `own`: the base model's tokenizer as loaded by transformers. `changes`: settings with new
    values. `stops`: ids that end an answer.
    """

    base: Path
    own: Any
    template: str
    changes: dict[str, Any]
    stops: list[int]

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer to a model's folder and add `stops` to its generation config."""
        if (self.base / "tekken.json").is_file() and not (self.base / "tokenizer.json").is_file():
            # transformers loads tekken.json with a Mistral class that ignores chat templates.
            self.own.save_pretrained(folder)
        for file in sorted({file for pattern in _FILES for file in self.base.glob(pattern)}):
            shutil.copyfile(file, folder / file.name)
        (folder / "chat_template.jinja").write_text(self.template, encoding="utf-8")
        settings, special = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
        before = _read(settings)
        kept = {key: value for key, value in before.items() if key != "chat_template"}
        _write(settings, before, kept | self.changes)
        before = _read(special)
        if before:
            changed = before | self.changes
            _write(special, before, {k: v for k, v in changed.items() if v is not None})
        self._stop_generation(folder)

    def _stop_generation(self, folder: Path) -> None:
        path = folder / "generation_config.json"
        settings = _read(path)
        eos = (settings if path.is_file() else _read(folder / "config.json")).get("eos_token_id")
        stops = [eos] if isinstance(eos, int) else list(eos or [])
        if not set(self.stops) <= set(stops):
            merged = list(dict.fromkeys([*stops, *self.stops]))
            _write(path, settings, settings | {"eos_token_id": merged})


def _read(path: Path) -> dict[str, Any]:
    """Returns the values of a JSON file; empty if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    if after != before:
        path.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def exported_tokenizer(
    tokenizer: PromptTokenizer, template: str, model_config: Any
) -> ExportedTokenizer:
    """Returns the tokenizer to export, with the arm's chat template and a pad token of its own.

    Also sets the pad token in `model_config`.
    """
    own = tokenizer.tokenizer.pad_token
    separate_pad_from_eos(tokenizer.tokenizer, model_config)
    pad, tokenizer.tokenizer.pad_token = tokenizer.tokenizer.pad_token, own
    changes = {} if pad == own else {"pad_token": pad}
    return ExportedTokenizer(
        tokenizer.path,
        tokenizer.tokenizer,
        served.template_source(tokenizer, template),
        changes,
        served.turn_ends(tokenizer, template),
    )


def separate_pad_from_eos(tokenizer: Any, model_config: Any) -> None:
    """Replace a pad token that equals the end of the sequence with the unknown token, or None.

    Many trainers mask all pad tokens in the labels, so a further fine-tuning would never learn to
    end an answer. Without a pad token they report an error. Our training does not pad.
    """
    eos = tokenizer.eos_token
    if tokenizer.pad_token == eos:
        tokenizer.pad_token = None if tokenizer.unk_token == eos else tokenizer.unk_token
    if getattr(model_config, "pad_token_id", None) == tokenizer.eos_token_id:
        model_config.pad_token_id = tokenizer.pad_token_id


def check_before_training(tokenizer: PromptTokenizer, template: str, sets: Sequence[Path]) -> None:
    """Raises before training what `check` would raise after it."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file in (tokenizer.path / "config.json", tokenizer.path / "generation_config.json"):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
        exported_tokenizer(tokenizer, template, SimpleNamespace()).save_pretrained(folder)
        check(folder, tokenizer, template, sets)


def check(folder: Path, tokenizer: PromptTokenizer, template: str, sets: Sequence[Path]) -> None:
    """Compare an exported folder's tokens with those of training, on examples of each set.

    Both the folder's own `apply_chat_template` and our evaluation must give the same tokens for
    the prompt and for the whole conversation. Conversations whose contents spell control tokens
    are compared with our evaluation only, because `apply_chat_template` would parse them as such.
    Raises DataError for the first example that differs.
    """
    exported = PromptTokenizer(folder)
    for path in sets:
        for number, messages in _some(path):
            difference = _difference(messages, tokenizer, exported, template)
            if difference is not None:
                raise DataError(
                    Place(path, number + 1, "messages"),
                    "the exported tokenizer would give other tokens than training used:"
                    f" {difference}",
                    "Set evaluate.template to another, or report the base model's tokenizer files",
                )


def _some(path: Path) -> Iterator[tuple[int, Sequence[Message]]]:
    """Yields (number from 0, messages) of evenly spaced examples of a set."""
    with path.open("rb") as lines:
        step = max(1, sum(1 for _ in lines) // _NUM_COMPARED)
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number % step == 0:
                yield number, Example.model_validate_json(line).messages


def _difference(
    messages: Sequence[Message],
    tokenizer: PromptTokenizer,
    exported: PromptTokenizer,
    template: str,
) -> str | None:
    """Describes how the exported tokenizer's tokens differ from training's; None if they agree."""
    ids, supervised = tokenizer.example(messages, template)
    try:
        again, _ = exported.example(messages, template)
    except (ValueError, DataError) as error:
        return str(error)
    if again != ids:
        return _shown("the conversation in an evaluation", tokenizer, ids, again)
    if any(tokenizer.controls.mask(message.content) != message.content for message in messages):
        return None
    if messages[-1].role == "assistant":
        difference = _prompt_difference(messages, tokenizer, exported, template, ids, supervised)
        if difference is not None:
            return difference
    whole = _apply_template(exported, messages, False)
    # If the template does not write the end of the sequence, `example` puts it in place of the
    # trailing white space.
    end = len(ids) - 1
    rest = tokenizer.tokenizer.decode(whole[end:]).strip() if whole[:end] == ids[:end] else None
    adds_eos = supervised[end] and ids[end] == tokenizer.tokenizer.eos_token_id
    if whole == ids or (adds_eos and rest == ""):
        return None
    return _shown("the conversation", tokenizer, ids, whole)


def _prompt_difference(
    messages: Sequence[Message],
    tokenizer: PromptTokenizer,
    exported: PromptTokenizer,
    template: str,
    ids: list[int],
    supervised: list[bool],
) -> str | None:
    """Describes how the prompt of the last answer differs; None if it does not."""
    (evaluated,) = tokenizer.encode([tokenizer.render(messages[:-1], template, generation=True)])
    prompt = _apply_template(exported, messages[:-1], True)
    # If the answer's first token contains the end of the prompt, the prompt by itself ends in
    # other tokens.
    end = max(number for number, learnt in enumerate(supervised) if learnt)
    start = max(number for number, learnt in enumerate(supervised[:end]) if not learnt) + 1
    expected = evaluated if prompt != evaluated else ids[:start]
    if prompt[: len(expected)] == expected and prompt == evaluated:
        return None
    return _shown("the prompt", tokenizer, expected, prompt)


def _apply_template(
    exported: PromptTokenizer, messages: Sequence[Message], generation: bool
) -> list[int]:
    """Returns the token ids that transformers and vLLM compute."""
    turns = [message.model_dump() for message in messages]
    apply = exported.tokenizer.apply_chat_template
    return list(apply(turns, tokenize=True, add_generation_prompt=generation, return_dict=False))


def _shown(what: str, tokenizer: PromptTokenizer, trained: list[int], exported: list[int]) -> str:
    """Describes two token sequences around the first position at which they differ."""
    position = next(
        (n for n, (a, b) in enumerate(zip(trained, exported, strict=False)) if a != b),
        min(len(trained), len(exported)),
    )
    around = slice(max(0, position - 2), position + 3)
    pieces = [tokenizer.tokenizer.convert_ids_to_tokens(ids[around]) for ids in (trained, exported)]
    return f"{what} has {pieces[1]} at token {position + 1} where training has {pieces[0]}"
