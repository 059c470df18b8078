"""General instructions that are blended into every set: JSON with instruction, input (may be empty) and output.

One object per line, or one list of objects, as alpaca_gpt4_data.json is.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from ift_scale import draws
from ift_scale.config import BUILTIN_MODEL, GeneralConfig
from ift_scale.errors import DataError, Place
from ift_scale.io import jsonl
from ift_scale.records import Example, ExampleMeta, Message


def path_of(config: GeneralConfig) -> Path | None:
    if config.path is None:
        return None
    if config.path == BUILTIN_MODEL:
        return Path(str(resources.files("ift_scale.world") / "general.jsonl"))
    return Path(config.path)


def load(path: Path) -> dict[str, Example]:
    """The instructions by ids made of their content, which do not depend on their order in the file."""
    examples, unique = {}, draws.Unique()
    for number, row in jsonl.rows(path):
        place = Place(path, number)
        given = _text(place, row, "input") if row.get("input") not in (None, "") else ""
        user = _text(place, row, "instruction") + (f"\n\n{given}" if given else "")
        output = _text(place, row, "output")
        messages = [Message(role="user", content=user), Message(role="assistant", content=output)]
        example = Example(messages=messages, meta=ExampleMeta(setting="general", wording="general"))
        examples[unique(draws.content_id([user, output]))] = example
    return examples


def _text(place: Place, row: jsonl.Row, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        remedy = "instruction and output must be texts, input a text, empty or left out; fix or remove the row"
        raise DataError(
            Place(place.file, place.line, field), "missing, empty or not a text", remedy, value
        )
    return value


def shuffled(examples: Mapping[str, Example], domain: str, seed: int) -> list[str]:
    """All ids in the random order of a domain and seed."""
    return draws.shuffled(examples, f"general/{domain}/{seed}")


def draw(shuffled: Sequence[str], set_size: int, share: float, path: Path) -> Sequence[str]:
    """As many ids as make `share` of the finished set, the first ones: the same for all settings of a domain and seed."""
    count = round(set_size * share / (1 - share))
    if count > len(shuffled):
        remedy = "Lower construct.general.share or construct.size, or give a larger file"
        raise DataError(
            Place(path),
            f"{count} general instructions are needed and {len(shuffled)} are there",
            remedy,
        )
    return shuffled[:count]
