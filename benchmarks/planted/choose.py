"""Which of the real questions are used: a draw by seed from the pools and MMLU, short ones, no question text twice.

In: a folder of pools and of MMLU as JSON lines. Short questions are taken so that a 5-shot prompt stays affordable on a CPU.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, Place
from ift_scale.io import jsonl
from ift_scale.questions import mmlu
from ift_scale.questions.checks import choice_question
from ift_scale.records import Question, Split

GENERAL = "general/alpaca_en_demo"
_MMLU_DEV_CHARACTERS = 1000
_MAX_INSTRUCTION_CHARACTERS = 150
_MAX_OUTPUT_CHARACTERS = 100


@dataclass(frozen=True)
class Share:
    """`count` questions of at most `max_characters` (question and options together) from one file."""

    file: str
    """Below the data folder, without its ending."""
    split: Split
    count: int
    max_characters: int
    domain: str | None = None
    """The pool's domain; None for MMLU, whose subjects have theirs."""
    subject: str | None = None

    @property
    def topic(self) -> str:
        return self.domain or self.subject or ""


@dataclass(frozen=True)
class Chosen:
    """A question, its row as it stood in the source, and the share it was drawn for."""

    question: Question
    row: dict[str, Any]
    share: Share


def _benchmark(subject: str, count: int) -> tuple[Share, Share]:
    return (
        Share("mmlu/dev", "dev", 5, _MMLU_DEV_CHARACTERS, subject=subject),
        Share("mmlu/test", "test", count, 120, subject=subject),
    )


# The medicine pool has no train file, so its test rows give both train and test questions.
SHARES: tuple[Share, ...] = (
    Share("pools/engineering/dev", "dev", 6, 220, domain="engineering"),
    Share("pools/engineering/train", "train", 200, 110, domain="engineering"),
    Share("pools/engineering/test", "test", 80, 180, domain="engineering"),
    Share("pools/medmcqa/dev", "dev", 6, 160, domain="medicine"),
    Share("pools/medmcqa/test", "train", 200, 120, domain="medicine"),
    Share("pools/medmcqa/test", "test", 80, 120, domain="medicine"),
    *_benchmark("electrical_engineering", 40),
    *_benchmark("anatomy", 15),
    *_benchmark("clinical_knowledge", 15),
    *_benchmark("human_aging", 15),
    *_benchmark("conceptual_physics", 15),
    *_benchmark("management", 15),
    *_benchmark("miscellaneous", 15),
    *_benchmark("world_religions", 15),
)


def check(data: Path, shares: Sequence[Share] = SHARES) -> None:
    """DataError that names every file that is missing below `data`."""
    stems = dict.fromkeys([*(share.file for share in shares), GENERAL])
    missing = [stem for stem in stems if not any(data.glob(f"{stem}.json*"))]
    if missing:
        problem = f"no file {', '.join(f'{stem}.jsonl.gz' for stem in missing)}"
        raise DataError(
            Place(data),
            problem,
            "Give the folder that holds the pools, MMLU and the general instructions",
        )


def file_of(data: Path, stem: str) -> Path:
    return jsonl.find((data / stem).parent, Path(stem).name)


def normalised(text: str) -> str:
    """Words alone: what two questions must not share."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def choose(data: Path, seed: int, shares: Sequence[Share] = SHARES) -> list[Chosen]:
    """The questions of all shares, in their order; the same ones for the same seed and files."""
    check(data, shares)
    seen: set[str] = set()
    return [chosen for share in shares for chosen in _draw(data, share, seed, seen)]


def _draw(data: Path, share: Share, seed: int, seen: set[str]) -> list[Chosen]:
    path = file_of(data, share.file)
    rows = [
        (Place(path, n), row)
        for n, row in jsonl.rows(path)
        if share.subject in (None, row.get("subject"))
    ]
    random.Random(f"planted/{seed}/{share.file}/{share.split}/{share.topic}").shuffle(rows)
    drawn: list[Chosen] = []
    for place, row in rows:
        question = _question(place, row, share)
        key = normalised(question.question)
        if (
            len(drawn) < share.count
            and key not in seen
            and _is_usable(question, share.max_characters)
        ):
            seen.add(key)
            drawn.append(Chosen(question, row, share))
    if len(drawn) < share.count:
        problem = f"{share.count} questions on {share.topic} of at most {share.max_characters} characters are needed, {len(drawn)} fit"
        raise DataError(Place(path), problem, "Give the whole file")
    return drawn


def _question(place: Place, row: dict[str, Any], share: Share) -> Question:
    """With the id that the questions stage will give it."""
    if share.domain is not None:
        id = f"{share.domain}/{share.split}/{row.get('id')}"
        return choice_question(
            place,
            row,
            id=id,
            domain=share.domain,
            subject=share.domain,
            collection="pool",
            split=share.split,
        )
    assert share.subject is not None
    id = f"mmlu/{share.split}/{row.get('id')}"
    domain = mmlu.domain_of(share.subject)
    return choice_question(
        place,
        row,
        id=id,
        domain=domain,
        subject=share.subject,
        collection="benchmark",
        split=share.split,
    )


def _is_usable(question: Question, max_characters: int) -> bool:
    """Short, on one line, and with four options that differ as words."""
    texts = [question.question, *question.choices]
    distinct = {choice.strip().casefold() for choice in question.choices}
    return (
        sum(map(len, texts)) <= max_characters
        and not any("\n" in text for text in texts)
        and len(distinct) == 4
    )


def general_instructions(data: Path) -> list[dict[str, str]]:
    """The short general instructions, in the order of their file: rows of instruction, input and output."""
    fields = ("instruction", "input", "output")
    rows = [
        {field: str(row.get(field) or "") for field in fields}
        for _, row in jsonl.rows(file_of(data, GENERAL))
    ]
    return [
        row
        for row in rows
        if row["instruction"].strip()
        and 0 < len(row["output"].strip()) <= _MAX_OUTPUT_CHARACTERS
        and len(row["instruction"] + row["input"]) <= _MAX_INSTRUCTION_CHARACTERS
    ]
