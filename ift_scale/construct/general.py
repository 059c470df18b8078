"""General instructions that are blended into every set: JSON lines of instruction, input (may be empty) and output."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from ift_scale import draws, jsonl
from ift_scale.config import BUILTIN_MODEL, GeneralConfig
from ift_scale.errors import DataError, Place
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
        for field in ("instruction", "output"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                remedy = "Every row needs a text for instruction and output; mend or remove it"
                raise DataError(Place(path, number, field), "missing or empty", remedy, row.get(field))
        user = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
        messages = [Message(role="user", content=user), Message(role="assistant", content=row["output"])]
        example = Example(messages=messages, meta=ExampleMeta(setting="general", wording="general"))
        examples[unique(draws.content_id([user, row["output"]]))] = example
    return examples


def shuffled(examples: Mapping[str, Example], domain: str, seed: int) -> list[str]:
    """All ids in the random order of a domain and seed."""
    return draws.shuffled(examples, f"general/{domain}/{seed}")


def draw(shuffled: Sequence[str], set_size: int, share: float, path: Path) -> Sequence[str]:
    """As many ids as make `share` of the finished set, the first ones: the same for all settings of a domain and seed."""
    count = round(set_size * share / (1 - share))
    if count > len(shuffled):
        remedy = "Lower construct.general.share or construct.size, or give a larger file"
        raise DataError(Place(path), f"{count} general instructions are needed and {len(shuffled)} are there", remedy)
    return shuffled[:count]
