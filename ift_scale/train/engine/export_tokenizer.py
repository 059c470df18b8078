"""The tokenizer that is exported beside an arm's weights: whoever chats with the arm or trains it further gets what we trained.

In: the base model's folder and the template of training. Out: the base model's tokenizer files, byte for byte except for the
chat template and a pad token that is the end of the sequence, and a generation config that stops where answers end.
`check` loads what was written and compares its tokens with those of training.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from ift_scale.errors import DataError, Place
from ift_scale.io.files import read_jsonl
from ift_scale.prompts import served
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Example, Message

# transformers' save_pretrained writes the tokenizer as it understands it, and loses settings (sentencepiece's `legacy`).
_FILES = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "*.tiktoken",
)  # fmt: skip
_NUM_COMPARED = 64


@dataclass(frozen=True)
class ExportedTokenizer:
    """`own`: the base model's tokenizer as transformers reads it. `changes`: its settings with new values. `stops`: the ids that
    end an answer."""

    base: Path
    own: Any
    template: str
    changes: dict[str, Any]
    stops: list[int]

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer to an exported model's folder, and have its generation config stop at `stops`."""
        if (self.base / "tekken.json").is_file() and not (self.base / "tokenizer.json").is_file():
            # transformers reads tekken.json with a class of Mistral's that ignores chat templates.
            self.own.save_pretrained(folder)
        for file in sorted({file for pattern in _FILES for file in self.base.glob(pattern)}):
            shutil.copyfile(file, folder / file.name)
        (folder / "chat_template.jinja").write_text(self.template, encoding="utf-8")
        settings, special = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
        before = _read(settings)
        _write(
            settings,
            before,
            {key: value for key, value in before.items() if key != "chat_template"} | self.changes,
        )
        before = _read(special)
        if before:
            _write(
                special,
                before,
                {key: value for key, value in (before | self.changes).items() if value is not None},
            )
        self._stop_generation(folder)

    def _stop_generation(self, folder: Path) -> None:
        path = folder / "generation_config.json"
        settings = _read(path)
        found = (settings if path.is_file() else _read(folder / "config.json")).get("eos_token_id")
        stops = [found] if isinstance(found, int) else list(found or [])
        if not set(self.stops) <= set(stops):
            _write(
                path,
                settings,
                settings | {"eos_token_id": list(dict.fromkeys([*stops, *self.stops]))},
            )


def _read(path: Path) -> dict[str, Any]:
    """The values of a JSON file; none where the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    if after != before:
        path.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def publish(tokenizer: PromptTokenizer, template: str, model_config: Any) -> ExportedTokenizer:
    """The tokenizer to export, with the arm's chat template, and with a pad token of its own in it and in the model's config."""
    own = tokenizer.tokenizer.pad_token
    part_pad_from_eos(tokenizer.tokenizer, model_config)
    pad, tokenizer.tokenizer.pad_token = tokenizer.tokenizer.pad_token, own
    changes = {} if pad == own else {"pad_token": pad}
    return ExportedTokenizer(
        tokenizer.path,
        tokenizer.tokenizer,
        served.template_source(tokenizer, template),
        changes,
        served.turn_ends(tokenizer, template),
    )


def part_pad_from_eos(tokenizer: Any, model_config: Any) -> None:
    """Where the pad token is the end of the sequence, take the tokenizer's unknown token instead, or none.

    Many trainers mask every pad token in their labels: with such a tokenizer the next fine-tuning would never learn to end an
    answer. Where there is none they say so. We pad nothing.
    """
    eos = tokenizer.eos_token
    if tokenizer.pad_token == eos:
        tokenizer.pad_token = None if tokenizer.unk_token == eos else tokenizer.unk_token
    if getattr(model_config, "pad_token_id", None) == tokenizer.eos_token_id:
        model_config.pad_token_id = tokenizer.pad_token_id


def check_before_training(tokenizer: PromptTokenizer, template: str, sets: Sequence[Path]) -> None:
    """Raise before the training what `check` would raise after it."""
    with TemporaryDirectory() as made:
        folder = Path(made)
        for file in (tokenizer.path / "config.json", tokenizer.path / "generation_config.json"):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
        publish(tokenizer, template, SimpleNamespace()).save_pretrained(folder)
        check(folder, tokenizer, template, sets)


def check(folder: Path, tokenizer: PromptTokenizer, template: str, sets: Sequence[Path]) -> None:
    """Compare an exported folder's tokens with those of training, on examples of each set.

    The folder's own `apply_chat_template` must give the prompt's tokens up to where the answer begins, and the whole
    conversation's; so must our evaluation, which reads the folder. Conversations whose contents spell control tokens are left
    to the second comparison: `apply_chat_template` takes such text for control tokens. DataError names the first example that
    differs.
    """
    exported = PromptTokenizer(folder)
    for path in sets:
        examples = read_jsonl(path, Example)
        step = max(1, len(examples) // _NUM_COMPARED)
        for number in range(0, len(examples), step):
            messages = examples[number].messages
            difference = _difference(messages, tokenizer, exported, template)
            if difference is not None:
                raise DataError(
                    Place(path, number + 1, "messages"),
                    f"the tokenizer that is exported with the model would give other tokens than training: {difference}",
                    "Set evaluate.template to another, or report the base model's tokenizer files",
                )


def _difference(
    messages: Sequence[Message],
    tokenizer: PromptTokenizer,
    exported: PromptTokenizer,
    template: str,
) -> str | None:
    """How the exported tokenizer's tokens of a conversation differ from training's; None where they do not."""
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
        found = _prompt_difference(messages, tokenizer, exported, template, ids, supervised)
        if found is not None:
            return found
    whole = _applied(exported, messages, False)
    # Where the template does not write the end of the sequence, `example` puts it in place of the white space at the end.
    end = len(ids) - 1
    rest = tokenizer.tokenizer.decode(whole[end:]).strip() if whole[:end] == ids[:end] else None
    puts_end = supervised[end] and ids[end] == tokenizer.tokenizer.eos_token_id
    return (
        None
        if whole == ids or (puts_end and rest == "")
        else _shown("the conversation", tokenizer, ids, whole)
    )


def _prompt_difference(
    messages: Sequence[Message],
    tokenizer: PromptTokenizer,
    exported: PromptTokenizer,
    template: str,
    ids: list[int],
    supervised: list[bool],
) -> str | None:
    """How the prompt of the last answer differs, from the prompt that we evaluate with or from the beginning of `ids`."""
    (asked,) = tokenizer.encode([tokenizer.render(messages[:-1], template, generation=True)])
    prompt = _applied(exported, messages[:-1], True)
    # Where the answer's first token holds the end of the prompt, the prompt by itself ends in other tokens.
    end = max(number for number, learnt in enumerate(supervised) if learnt)
    start = max(number for number, learnt in enumerate(supervised[:end]) if not learnt) + 1
    expected = asked if prompt != asked else ids[:start]
    return (
        None
        if prompt[: len(expected)] == expected and prompt == asked
        else _shown("the prompt", tokenizer, expected, prompt)
    )


def _applied(exported: PromptTokenizer, messages: Sequence[Message], generation: bool) -> list[int]:
    """Token ids as transformers and vLLM make them."""
    turns = [message.model_dump() for message in messages]
    applied = exported.tokenizer.apply_chat_template
    return list(applied(turns, tokenize=True, add_generation_prompt=generation, return_dict=False))


def _shown(what: str, tokenizer: PromptTokenizer, ids: list[int], found: list[int]) -> str:
    """The tokens around the first place where two sequences differ."""
    place = next(
        (n for n, (a, b) in enumerate(zip(ids, found, strict=False)) if a != b),
        min(len(ids), len(found)),
    )
    around = slice(max(0, place - 2), place + 3)
    pieces = [tokenizer.tokenizer.convert_ids_to_tokens(row[around]) for row in (ids, found)]
    return f"{what} has {pieces[1]} at token {place + 1} where training has {pieces[0]}"
