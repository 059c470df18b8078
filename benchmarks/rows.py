"""Benchmark results as data: one JSON file a benchmark, each with what it was measured on."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ift_scale.artifacts import git_commit, machine_name, package_versions, write_json

RESULTS = Path(__file__).parent / "results"


def quantiles(values: list[float]) -> dict[str, float]:
    """Smallest, median and largest of repeated measurements."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return {"min": ordered[0], "median": median, "max": ordered[-1], "repeats": len(ordered)}


def store(name: str, rows: dict[str, Any]) -> Path:
    """Write results/NAME.json with date, commit, versions and machine."""
    path = RESULTS / f"{name}.json"
    origin = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "versions": package_versions(),
        "machine": machine_name(),
    }
    write_json(path, {"benchmark": name, **origin, "rows": rows})
    return path
