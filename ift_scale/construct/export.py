"""Exports sets for other trainers: ShareGPT JSON and a Hugging Face dataset folder with a card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from ift_scale.io.files import read_jsonl, write_text
from ift_scale.records import Arm, Example
from ift_scale.treatments import treatment

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def write_sharegpt(path: Path, source: Path) -> None:
    """Writes a set as a JSON list of {"conversations": [{"from", "value"}]} (FastChat,
    LLaMA-Factory)."""
    rows = [
        {
            "conversations": [
                {"from": _SPEAKERS[message.role], "value": message.content}
                for message in example.messages
            ]
        }
        for example in read_jsonl(source, Example)
    ]
    write_text(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def write_huggingface(
    folder: Path, sets: Path, arms: Sequence[Arm], sizes: Mapping[str, int], about: str
) -> None:
    """Writes FOLDER/data/ARM.jsonl and the dataset card for `datasets.load_dataset(FOLDER, ARM)`.

    The examples are read from SETS/ARM.jsonl; `about` describes the source of the sets.
    """
    (folder / "data").mkdir(parents=True)
    for arm in arms:
        # Every row has all columns: the loader infers the columns from the first rows.
        source, copy = sets / f"{arm.name}.jsonl", folder / "data" / f"{arm.name}.jsonl"
        with source.open(encoding="utf-8") as lines, copy.open("w", encoding="utf-8") as file:
            file.writelines(
                Example.model_validate_json(line).model_dump_json() + "\n" for line in lines
            )
    (folder / "README.md").write_text(card(arms, sizes, about), encoding="utf-8")


def card(arms: Sequence[Arm], sizes: Mapping[str, int], about: str) -> str:
    """Returns the dataset card: loader configurations, description, and set sizes."""
    header = {
        "language": ["en"],
        "task_categories": ["question-answering", "text-generation"],
        "tags": ["instruction-fine-tuning", "knowledge-intervention"],
        "configs": [
            {"config_name": arm.name, "data_files": f"data/{arm.name}.jsonl"} for arm in arms
        ],
    }
    table = "\n".join(
        f"| {arm.name} | {sizes[arm.name]} | {treatment(arm.setting).label} |" for arm in arms
    )
    return (
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n"
        "# Instruction sets by what a base model knows\n\n"
        "Sets that agree or disagree with a base model's knowledge (Ren et al. 2024, arXiv "
        f"2402.18243), built by IFT-Scale.\n\n{about}\n\n"
        "Each row has `messages` in chat form and `meta`: setting, question, target letter, author "
        "of the response, weight in the loss, and whether the target is the base model's own "
        "answer.\n\n"
        f"| set | examples | treatment |\n|---|---|---|\n{table}\n\n"
        "Each row is subject to the licence of its source: the question set or the collection of "
        "general instructions.\n"
    )
