"""General instructions that are blended into every set: JSON with instruction, input (may be empty) and output.

One object per line, or one list of objects, as alpaca_gpt4_data.json is.
"""

import random
from importlib import resources
from pathlib import Path

from ift_scale import jsonl
from ift_scale.config import BUILTIN_MODEL, GeneralConfig
from ift_scale.errors import DataError, Place
from ift_scale.records import Example, ExampleMeta, Message


def path_of(config: GeneralConfig) -> Path | None:
    if config.path is None:
        return None
    if config.path == BUILTIN_MODEL:
        return Path(str(resources.files("ift_scale.world") / "general.jsonl"))
    return Path(config.path)


def load(path: Path) -> list[Example]:
    examples = []
    for number, row in jsonl.rows(path):
        place = Place(path, number)
        given = _text(place, row, "input") if row.get("input") not in (None, "") else ""
        user = _text(place, row, "instruction") + (f"\n\n{given}" if given else "")
        messages = [Message(role="user", content=user), Message(role="assistant", content=_text(place, row, "output"))]
        examples.append(Example(messages=messages, meta=ExampleMeta(setting="general", wording="general")))
    return examples


def _text(place: Place, row: jsonl.Row, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        remedy = "instruction and output must be texts, input a text, empty or left out; fix or remove the row"
        raise DataError(Place(place.file, place.line, field), "missing, empty or not a text", remedy, value)
    return value


def draw(examples: list[Example], set_size: int, share: float, domain: str, seed: int, path: Path) -> list[Example]:
    """As many as make `share` of the finished set; the same ones for all settings of a domain and seed."""
    count = round(set_size * share / (1 - share))
    if count > len(examples):
        remedy = "Lower construct.general.share or construct.size, or give a larger file"
        raise DataError(Place(path), f"{count} general instructions are needed and {len(examples)} are there", remedy)
    return random.Random(f"general/{domain}/{seed}").sample(examples, count)
