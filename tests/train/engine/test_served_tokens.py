"""Exported folders, loaded without our code: their chat template gives the tokens of training."""

import json
import shutil
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from ift_scale.errors import DataError
from ift_scale.prompts.served import template_source
from ift_scale.prompts.templates import TEMPLATES
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Message
from ift_scale.train.engine import export_tokenizer
from tests.prompts.chat_families import (
    FAMILIES,
    LLAMA32,
    QWEN3,
    byte_level_folder,
    sentencepiece_folder,
)

REFUSED = {("deepseek-r1", "model")}
TEXTS = [
    ("What is it made of?\nA. copper\nB. oak\nAnswer:", "B. oak"),
    ("Say two words.", "two words\n\nand  more"),
    ("  (a) When?", " Then."),
    ("one", "two", "three", "four"),
    ("one", "two", "three"),
]


def _conversation(texts: tuple[str, ...]) -> list[Message]:
    return [
        Message(role="user" if n % 2 == 0 else "assistant", content=text)
        for n, text in enumerate(texts)
    ]


def _set(path: Path, *conversations: list[Message]) -> Path:
    meta = {"setting": "general", "wording": "general"}
    rows = [
        {"messages": [m.model_dump() for m in messages], "meta": meta} for messages in conversations
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _exported(tokenizer: PromptTokenizer, template: str, folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "generation_config.json"):
        if (tokenizer.path / name).is_file():
            shutil.copyfile(tokenizer.path / name, folder / name)
    export_tokenizer.exported_tokenizer(tokenizer, template, SimpleNamespace()).save_pretrained(
        folder
    )
    return folder


def _applied(read: Any, messages: list[Message], generation: bool = False) -> list[int]:
    turns = [message.model_dump() for message in messages]
    return read.apply_chat_template(
        turns, tokenize=True, return_dict=False, add_generation_prompt=generation
    )


@pytest.mark.parametrize("template", ["model", "vicuna", "chatml"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_folder_gives_the_tokens_of_training(
    tmp_path: Path, family: str, template: str
) -> None:
    tokenizer = PromptTokenizer(FAMILIES[family](tmp_path / "base"))
    conversations = list(map(_conversation, TEXTS))
    sets = _set(tmp_path / "set.jsonl", *conversations)
    if (family, template) in REFUSED:
        with pytest.raises(
            DataError,
            match=r"an assistant's turn does not begin like the template.s generation prompt",
        ):
            export_tokenizer.check_before_training(tokenizer, template, [sets])
        return
    export_tokenizer.check_before_training(tokenizer, template, [sets])
    folder = _exported(tokenizer, template, tmp_path / "exported")
    export_tokenizer.check(folder, tokenizer, template, [sets])
    read, again = AutoTokenizer.from_pretrained(folder), PromptTokenizer(folder)
    eos = tokenizer.tokenizer.eos_token_id
    for messages in conversations:
        ids, supervised = tokenizer.example(messages, template)
        assert again.example(messages, template)[0] == ids
        whole = _applied(read, messages)
        if messages[-1].role == "user":
            assert (
                whole == ids
                and _applied(read, messages, True)
                == tokenizer.encode([tokenizer.render(messages, template, True)])[0]
            )
            continue
        start = max(n for n in range(1, len(ids)) if supervised[n] and not supervised[n - 1])
        assert _applied(read, messages[:-1], True) == ids[:start]
        # We add the end of the sequence if a template does not.
        assert whole == ids or (
            whole[: len(ids) - 1] == ids[:-1]
            and ids[-1] == eos
            and not read.decode(whole[len(ids) - 1 :]).strip()
        )
    settings = folder / "generation_config.json"
    stops = json.loads((settings if settings.is_file() else folder / "config.json").read_text())[
        "eos_token_id"
    ]
    stops = [stops] if isinstance(stops, int) else stops
    ids, supervised = tokenizer.example(_conversation(TEXTS[0]), template)
    assert eos in stops
    controls = [
        i
        for i, learnt in zip(ids, supervised, strict=True)
        if learnt and i in tokenizer.controls.ids.values()
    ]
    assert controls[0] in stops  # the first control token that an answer ends with


def test_settings_of_the_base_tokenizer_stay_as_they_are(tmp_path: Path) -> None:
    base = sentencepiece_folder(
        tmp_path / "base",
        None,
        True,
        clean_up_tokenization_spaces=False,
        model_max_length=77,
        pad_token="</s>",
        unknown={"a": [1]},
    )
    (base / "special_tokens_map.json").write_text('{"bos_token": "<s>", "pad_token": "</s>"}')
    (base / "chat_template.jinja").write_text("other")
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.6}')
    (base / "config.json").write_text('{"model_type": "llama", "eos_token_id": 7}')
    folder = _exported(PromptTokenizer(base), "vicuna", tmp_path / "exported")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    assert json.loads((folder / "tokenizer_config.json").read_text()) == settings | {
        "pad_token": "<unk>"
    }
    assert json.loads((folder / "special_tokens_map.json").read_text()) == {
        "bos_token": "<s>",
        "pad_token": "<unk>",
    }
    for name in ("tokenizer.model", "generation_config.json"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    assert (
        "USER: " in (folder / "chat_template.jinja").read_text()
        and AutoTokenizer.from_pretrained(folder).pad_token == "<unk>"
    )


def test_other_templates_of_the_base_model_are_left_out(tmp_path: Path) -> None:
    base = byte_level_folder(tmp_path / "base", None, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["chat_template"] = [
        {"name": "default", "template": QWEN3},
        {"name": "tool_use", "template": "tools"},
    ]
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "chat_template.jinja").write_text(QWEN3)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "rag.jinja").write_text("rag")
    for template in ("model", "vicuna"):
        read = AutoTokenizer.from_pretrained(
            _exported(PromptTokenizer(base), template, tmp_path / template)
        )
        assert isinstance(read.chat_template, str)
    nameless = settings | {
        "chat_template": [{"name": "x", "template": "x"}, {"name": "y", "template": "y"}]
    }
    (base / "tokenizer_config.json").write_text(json.dumps(nameless))
    shutil.rmtree(base / "additional_chat_templates")
    (base / "chat_template.jinja").unlink()
    with pytest.raises(
        DataError,
        match="field 'chat_template': This model has multiple chat templates with no default",
    ):
        template_source(PromptTokenizer(base), "model")


def test_a_template_that_writes_the_date_is_exported_with_the_day_of_training(
    tmp_path: Path,
) -> None:
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = PromptTokenizer(
        byte_level_folder(
            tmp_path / "base", LLAMA32, special, "<|eot_id|>", special[0], bos_token=special[0]
        )
    )
    folder = _exported(tokenizer, "model", tmp_path / "exported")
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False
    )
    assert "Today Date: 26 Jul 2024" in text and date.today().strftime("%d %b %Y") not in text


def test_served_thoughts_stay_shut_whatever_is_asked_for(tmp_path: Path) -> None:
    tokenizer = PromptTokenizer(FAMILIES["qwen3"](tmp_path / "base"))
    read = AutoTokenizer.from_pretrained(_exported(tokenizer, "model", tmp_path / "exported"))
    asked = [{"role": "user", "content": "a"}]
    prompts = {
        read.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **more)
        for more in ({}, {"enable_thinking": True})
    }
    assert prompts == {
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    }


@pytest.mark.parametrize("damage", ["legacy", "template", "generation prompt"])
def test_an_export_with_other_tokens_is_refused_with_the_line(tmp_path: Path, damage: str) -> None:
    family = "llama-2 legacy" if damage == "legacy" else "qwen3"
    tokenizer = PromptTokenizer(FAMILIES[family](tmp_path / "base"))
    folder = _exported(tokenizer, "model", tmp_path / "exported")
    sets = _set(tmp_path / "set.jsonl", _conversation(TEXTS[0]))
    export_tokenizer.check(folder, tokenizer, "model", [sets])
    if damage == "legacy":
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"legacy": False}))
    elif damage == "template":
        shutil.copyfile(folder / "chat_template.jinja", folder / "kept")
        (folder / "chat_template.jinja").write_text(
            (folder / "kept").read_text().replace("'\\n<think>\\n' +", "'\\n<think>\\n\\n\\n' +")
        )
    else:
        (folder / "chat_template.jinja").write_text(QWEN3)
    with pytest.raises(
        DataError,
        match=r"set.jsonl:1: field 'messages': .* would give other tokens than training used",
    ):
        export_tokenizer.check(folder, tokenizer, "model", [sets])


def test_a_template_that_cannot_be_served_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A format that is computed: the day of training cannot be written into the template."""
    dated = "{% set format = '%d %b %Y' %}{{ strftime_now(format) }}" + TEMPLATES["vicuna"]
    monkeypatch.setitem(TEMPLATES, "vicuna", dated)
    tokenizer = PromptTokenizer(FAMILIES["qwen2"](tmp_path / "base"))
    sets = _set(tmp_path / "set.jsonl", _conversation(TEXTS[0]))
    with pytest.raises(
        DataError,
        match=r"set.jsonl:1: .*the prompt has .* where training has .*Set evaluate.template to",
    ):
        export_tokenizer.check_before_training(tokenizer, "vicuna", [sets])


def test_mistrals_own_format_is_not_exported(tmp_path: Path) -> None:
    """With mistral-common, transformers would load it with a class without chat templates."""
    base = FAMILIES["tekken"](tmp_path / "base")
    (base / "config.json").write_text('{"model_type": "mistral"}')
    (base / "tekken.json").write_text("{}")
    tokenizer = PromptTokenizer(base)
    folder = _exported(tokenizer, "vicuna", tmp_path / "exported")
    assert (
        not (folder / "tekken.json").exists()
        and (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    )
    messages = _conversation(TEXTS[0])
    assert (
        _applied(AutoTokenizer.from_pretrained(folder), messages)
        == tokenizer.example(messages, "vicuna")[0]
    )
    # Without tokenizer.json, the converted tokenizer is written.
    converted = export_tokenizer.ExportedTokenizer(
        tmp_path / "native", tokenizer.tokenizer, "x", {}, [1]
    )
    converted.base.mkdir()
    (converted.base / "tekken.json").write_text("{}")
    converted.save_pretrained(folder)
    assert (
        AutoTokenizer.from_pretrained(folder).chat_template == "x"
        and not (folder / "tekken.json").exists()
    )
