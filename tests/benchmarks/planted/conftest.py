"""A data folder of handwritten questions, and the shares that fit it."""

import json
from pathlib import Path

import pytest

from benchmarks.planted.choose import Share

SMALL_SHARES = (
    Share("pools/engineering/dev", "dev", 5, 100, domain="engineering"),
    Share("pools/engineering/train", "train", 20, 100, domain="engineering"),
    Share("pools/engineering/test", "test", 10, 100, domain="engineering"),
    Share("mmlu/dev", "dev", 5, 100, subject="anatomy"),
    Share("mmlu/test", "test", 10, 100, subject="anatomy"),
)
METALS = ("copper", "tin", "lead", "zinc", "iron", "gold", "silver", "nickel")


def _row(name: str, number: int) -> dict[str, object]:
    choices = [METALS[(number + place) % len(METALS)] for place in (0, 1, 3, 4)]
    return {
        "id": number,
        "question": f"Part {number} of the {name} is made of _____",
        "choices": choices,
        "answer": number % 4,
    }


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Train repeats some of the test questions; one question of MMLU is far too long."""
    folder = tmp_path / "data"
    pools = folder / "pools" / "engineering"
    _write(pools / "dev.jsonl", [_row("lathe", n) for n in range(6)])
    _write(pools / "train.jsonl", [_row("lathe", 2), *(_row("pump", n) for n in range(24))])
    _write(
        pools / "test.jsonl",
        [*(_row("pump", n) for n in range(8)), *(_row("crane", n) for n in range(12))],
    )
    for split in ("dev", "test"):
        rows = [
            _row(f"hip joint {split}", n) | {"subject": "anatomy", "id": f"anatomy/{n}"}
            for n in range(12)
        ]
        long = {**rows[0], "question": "Why " * 50, "id": "anatomy/99"}
        _write(
            folder / "mmlu" / f"{split}.jsonl", [*rows, long, {**rows[1], "subject": "virology"}]
        )
    instruction = {"instruction": "Name a metal.", "input": "", "output": "Iron."}
    _write(
        folder / "general" / "alpaca_en_demo.jsonl",
        [instruction, {**instruction, "output": "Iron. " * 50}],
    )
    return folder
