"""The regression guard: counts that do not depend on how fast a machine is, against those stored in tests/golden/counts.json.

FLOPs, tokens, micro-batches, operations, allocations and the collectives of a step, requests and computed tokens of a probe
(`step_counts`), and what commands import before they work (`import_counts`). They are equal or not: `differences` tells each.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.suite.registry import CHECKOUT
from ift_scale.io.files import read_json, write_json

PATH = CHECKOUT / "tests" / "golden" / "counts.json"
_ALONE = {
    "DS_ACCELERATOR": "cpu",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "OMP_NUM_THREADS": "1",
}


def measure() -> dict[str, Any]:
    """All counts, each kind in a process of its own."""
    return {**_told("step_counts"), "imports": _told("import_counts")}


def _told(module: str) -> dict[str, Any]:
    environment = (
        os.environ
        | _ALONE
        | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])}
    )
    command = [sys.executable, "-m", f"benchmarks.suite.{module}"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} failed\n{ended.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def stored() -> dict[str, Any]:
    found: dict[str, Any] = read_json(PATH)
    return found


def store(counts: Mapping[str, Any]) -> None:
    write_json(PATH, counts)


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """A line for each count that is another, or that only one of the two has."""
    before, after = dict(_flat(expected)), dict(_flat(found))
    return [
        _line(n, before.get(n), after.get(n))
        for n in sorted(before.keys() | after.keys())
        if before.get(n) != after.get(n)
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, number); a list is a set of names, each counting 1."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield from ((f"{name}.{part}", 1) for part in value)
    else:
        yield name, value


def _line(name: str, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return f"{name}: {'new' if before is None else 'gone'}"
    share = f" ({after / before - 1:+.2%})" if before else ""
    return f"{name}: {before:,} before, {after:,} now{share}"
