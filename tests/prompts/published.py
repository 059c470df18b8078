"""Vocabularies shipped in PyPI packages, as tokenizers of `transformers`; none is a dependency.

pip install --no-deps llama-models dashscope mistral-common
"""

import base64
import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from tests.prompts.vocabularies import LLAMA3, O200K, QWEN2


def _file(package: str, path: str) -> Path:
    found = importlib.util.find_spec(package)
    folder = (
        Path(next(iter(found.submodule_search_locations)))
        if found and found.submodule_search_locations
        else None
    )
    if folder is None or not (folder / path).is_file():
        pytest.skip(f"{package} is not installed, which ships {path}")
    return folder / path


def _save(tokenizer: Tokenizer, folder: Path, start: str | None, end: str) -> None:
    if start is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end
    ).save_pretrained(folder)


def _tiktoken(folder: Path, file: Path, pattern: str, start: str | None, end: str) -> None:
    special = [token for token in (start, end) if token]
    made = TikTokenConverter(
        vocab_file=str(file), pattern=pattern, extra_special_tokens=special
    ).converted()
    _save(made, folder, start, end)


def llama3(folder: Path) -> None:
    _tiktoken(
        folder,
        _file("llama_models", "llama3/tokenizer.model"),
        LLAMA3,
        "<|begin_of_text|>",
        "<|end_of_text|>",
    )


def llama4(folder: Path) -> None:
    _tiktoken(
        folder,
        _file("llama_models", "llama4/tokenizer.model"),
        O200K,
        "<|begin_of_text|>",
        "<|end_of_text|>",
    )


def qwen(folder: Path) -> None:
    _tiktoken(folder, _file("dashscope", "resources/qwen.tiktoken"), QWEN2, None, "<|endoftext|>")


def tekken(folder: Path) -> None:
    """Mistral-Nemo's: its file as a tiktoken one."""
    file = json.loads(
        _file("mistral_common", "data/tekken_240911.json").read_text(encoding="utf-8")
    )
    count = file["config"]["default_vocab_size"] - file["config"]["default_num_special_tokens"]
    ranks = "".join(f"{row['token_bytes']} {row['rank']}\n" for row in file["vocab"][:count])
    assert base64.b64decode(file["vocab"][0]["token_bytes"]) == b"\0"
    (folder / "ranks.tiktoken").write_text(ranks)
    _tiktoken(folder, folder / "ranks.tiktoken", file["config"]["pattern"], "<s>", "</s>")


def mistral(folder: Path) -> None:
    """Mistral-7B's first, a sentencepiece model."""
    from transformers import LlamaTokenizer

    (folder / "tokenizer.model").write_bytes(
        _file("mistral_common", "data/tokenizer.model.v1").read_bytes()
    )
    pytest.importorskip("sentencepiece")
    LlamaTokenizer.from_pretrained(folder, add_bos_token=True).save_pretrained(folder)


FAMILIES = {
    "Llama-3": llama3,
    "Llama-4": llama4,
    "Qwen": qwen,
    "Mistral tekken": tekken,
    "Mistral": mistral,
}
