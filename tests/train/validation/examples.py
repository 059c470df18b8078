"""Chat examples and token files for tests of the validation loss."""

import json
from collections.abc import Sequence
from pathlib import Path

from ift_scale.config import TrainConfig
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import dataset
from ift_scale.train.data.tokenize import tokenize

WORDS = "willow ginger clover honey mint garlic sage nettle".split()
META = {"setting": "general", "wording": "general"}


def row(number: int, words: Sequence[str] = WORDS, weight: float = 1.0) -> dict[str, object]:
    """Returns example `number`; its answer has one to four words."""
    answer = " ".join(words[(number + i) % len(words)] for i in range(1 + number % 4))
    messages = [
        {"role": "user", "content": f"Say {'hello ' * (number % 5)}{number}."},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "meta": META | {"weight": weight}}


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    """Writes a set, or a file in the chat format."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tokens(path: Path, model: Path) -> Path:
    """Writes the token file of a set next to it."""
    found = tokenize(path, PromptTokenizer(model), "vicuna", TrainConfig(max_length=128))
    dataset.save(found, path.with_suffix(""))
    return path.with_suffix("")
