"""The stored measurements by which the trainer chooses the implementation of an op."""

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("figures.json")


def read() -> list[dict[str, Any]]:
    """Returns one row per op, device, dtype and shape.

    A row has op, device, dtype, shape, milliseconds {implementation: {p20, p50, p80}}, date and
    versions.
    """
    return json.loads(PATH.read_text(encoding="utf-8"))


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the old rows, replaced by new ones of the same op, device, dtype and shape."""
    rows = {
        json.dumps([row[key] for key in ("op", "device", "dtype", "shape")]): row
        for row in [*old, *new]
    }
    return list(rows.values())
