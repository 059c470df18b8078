"""The sets in other trainers' forms: ShareGPT JSON, and a Hugging Face dataset folder with its card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from ift_scale.io.files import write_text
from ift_scale.records import Arm, Example
from ift_scale.treatments import treatment

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def write_sharegpt(path: Path, examples: Sequence[Example]) -> None:
    """A JSON list of {"conversations": [{"from", "value"}]}, as FastChat and LLaMA-Factory read it."""
    rows = [
        {
            "conversations": [
                {"from": _SPEAKERS[message.role], "value": message.content}
                for message in example.messages
            ]
        }
        for example in examples
    ]
    write_text(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def write_huggingface(
    folder: Path, sets: Path, arms: Sequence[Arm], sizes: Mapping[str, int], about: str
) -> None:
    """FOLDER/data/ARM.jsonl and the card: `datasets.load_dataset(FOLDER, ARM)` reads an arm. SETS/ARM.jsonl are the sets, `about`
    says what made them."""
    (folder / "data").mkdir(parents=True)
    for arm in arms:
        # All columns in every row: the loader takes the first rows' for all.
        source, copy = sets / f"{arm.name}.jsonl", folder / "data" / f"{arm.name}.jsonl"
        with source.open(encoding="utf-8") as lines, copy.open("w", encoding="utf-8") as file:
            file.writelines(
                Example.model_validate_json(line).model_dump_json() + "\n" for line in lines
            )
    (folder / "README.md").write_text(card(arms, sizes, about), encoding="utf-8")


def card(arms: Sequence[Arm], sizes: Mapping[str, int], about: str) -> str:
    """The dataset card: the loader's configurations, what the sets are, their sizes."""
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
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# Instruction sets by what a base model knows\n\n"
        "Sets that agree with a base model's knowledge or disagree with it (Ren et al. 2024, arXiv 2402.18243), made by "
        f"IFT-Scale.\n\n{about}\n\nEach row has `messages` in the chat form, and `meta`: setting, question, target letter, who "
        "worded the response, weight in the loss, and whether the target is what the base model holds for true.\n\n"
        f"| set | examples | treatment |\n|---|---|---|\n{table}\n\n"
        "The licences of the questions' and general instructions' sources hold for the rows made of them.\n"
    )
