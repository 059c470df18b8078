"""Benchmark results as rows of one schema: JSON lines, one file per benchmark.

A row is one figure of one program in one case, with the spread of its repeats, the check that it
passed, and the machine. `store` replaces the rows of the same program on the same device, so that
rows of a GPU survive a run on a CPU. On a GPU each command measures only a part, so new rows
replace only those of the same figures.
"""

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, FiniteFloat

from ift_scale.errors import Place
from ift_scale.io import json_text, text_file
from ift_scale.io.files import read_jsonl, write_json, write_jsonl
from ift_scale.io.machine import git_commit, machine_name, package_versions
from ift_scale.records import Record

OURS = "ours"
MEASURED, PREDICTED = "measured", "predicted"
"""`who` of figures that our models also predict."""
OUT = "IFT_SCALE_BENCH_OUT"
"""Environment variable: the folder for drivers' rows instead of benchmarks/results."""
Better = Literal["higher", "lower", "neither"]


class Spread(Record):
    """Repeats of one measurement; `samples` in order of measurement, if they were kept."""

    value: FiniteFloat
    """The median (p50)."""
    p20: FiniteFloat | None = None
    p80: FiniteFloat | None = None
    low: FiniteFloat
    high: FiniteFloat
    repeats: int = Field(ge=1)
    samples: tuple[float, ...] = ()


class Gate(Record):
    """The check before a figure is stored, and its distance from the reference (None if none)."""

    checked: str
    gap: float | None = None
    tolerance: float | None = None


class Row(Spread):
    """One figure."""

    benchmark: str
    case: str
    """Workload and conditions, such as a dtype."""
    at: dict[str, float] = Field(default_factory=dict)
    """The sizes of a series' point."""
    who: str = OURS
    """The program."""
    quantity: str
    unit: str
    better: Better
    ratios: dict[str, Spread] = Field(default_factory=dict)
    """By peer: how many times better this program is, repeat by repeat."""
    interval: tuple[float, float] | None = None
    """95% interval, if the figure is a statistic."""
    gate: Gate
    about: dict[str, Any] = Field(default_factory=dict)
    """Settings, workload and curves of the figure."""
    date: str
    commit: str | None
    versions: dict[str, str]
    machine: str
    device: str = "cpu"

    @property
    def key(self) -> tuple[Any, ...]:
        """Identifies the same figure in another run."""
        return (
            self.benchmark,
            self.case,
            tuple(sorted(self.at.items())),
            self.who,
            self.quantity,
            self.device,
        )

    @property
    def title(self) -> str:
        return " | ".join(
            part
            for part in (self.benchmark, self.case, self.sizes, self.who, self.quantity)
            if part
        )

    @property
    def sizes(self) -> str:
        """`at` as text."""
        return ", ".join(f"{value:,.15g} {name}" for name, value in self.at.items())


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """Returns the fields of a `Spread`; quantiles are interpolated linearly."""
    ordered = sorted(map(float, samples))
    return {
        "value": statistics.median(ordered),
        "p20": _quantile(ordered, 0.2),
        "p80": _quantile(ordered, 0.8),
        "low": ordered[0],
        "high": ordered[-1],
        "repeats": len(ordered),
        "samples": tuple(map(float, samples)),
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def ratios(
    ours: Sequence[float], theirs: Mapping[str, Sequence[float]], better: Better
) -> dict[str, Spread]:
    """Returns by peer how many times better ours is, pairing repeats in order."""
    found = {}
    for name, values in theirs.items():
        pairs = list(zip(ours, values, strict=False))
        found[name] = Spread(**spread([a / b if better == "higher" else b / a for a, b in pairs]))
    return found


def origin(device: str = "cpu") -> dict[str, Any]:
    """Returns date, commit, versions, machine and device of a measurement."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "versions": package_versions(),
        "machine": machine_name(),
        "device": device,
    }


class Sheet:
    """Collects one run's rows of a benchmark; rows of `quick` runs only show that it works."""

    def __init__(self, benchmark: str, quick: bool, device: str = "cpu"):
        self.quick = quick
        self._shared = {"benchmark": benchmark, **origin(device)}
        self.rows: list[Row] = []

    def add(
        self,
        case: str,
        quantity: str,
        unit: str,
        samples: Sequence[float],
        gate: Gate,
        who: str = OURS,
        better: Better = "lower",
        **more: Any,
    ) -> None:
        measured = {
            **spread(samples),
            "case": case,
            "quantity": quantity,
            "unit": unit,
            "who": who,
            "better": better,
        }
        self.rows.append(Row(**self._shared, **measured, gate=gate, **more))

    def store(self) -> Path:
        return store(self.rows, out_folder(self.quick))


def store_inputs(name: str, found: Any) -> Path:
    """Writes data from which rows and documents are derived to results/NAME.json, with origin."""
    from benchmarks.suite.registry import results_folder

    path = results_folder() / f"{name}.json"
    write_json(path, {"benchmark": name, **origin(), "rows": found})
    return path


def out_folder(quick: bool) -> Path:
    """Returns the folder for rows: $IFT_SCALE_BENCH_OUT, or runs/bench-quick, or results."""
    from benchmarks.suite.registry import QUICK, results_folder

    folder = os.environ.get(OUT)
    return Path(folder) if folder else QUICK if quick else results_folder()


def store(rows: Sequence[Row], folder: Path) -> Path:
    """Writes rows to FOLDER/BENCHMARK.jsonl, replacing those of the same program or figure."""
    names = {row.benchmark for row in rows}
    assert len(names) == 1, names
    path = folder / f"{names.pop()}.jsonl"
    programs = {(row.who, row.device) for row in rows if row.device == "cpu"}
    figures = {row.key for row in rows}
    kept = [
        row
        for row in read_file(path)
        if (row.who, row.device) not in programs and row.key not in figures
    ]
    write_jsonl(path, [*kept, *rows])
    return path


def read_file(path: Path) -> list[Row]:
    """Returns the rows of a file, or none if it does not exist; DataError for other content."""
    if not path.exists() and not path.is_symlink():
        return []
    for number, line in enumerate(text_file.lines(path), start=1):  # duplicate keys, limits
        try:
            json_text.decode(line)
        except json_text.InvalidJson as error:
            remedy = "Restore the line, or run the benchmark again"
            raise text_file.refusal(Place(path, number), error, remedy, line) from error
    return read_jsonl(path, Row)


def read(path: Path) -> list[Row]:
    """Returns the rows of a file, or of all *.jsonl in a folder."""
    if path.is_dir():
        return [row for file in sorted(path.glob("*.jsonl")) for row in read_file(file)]
    return read_file(path)


def only(rows: Iterable[Row], **fields: Any) -> list[Row]:
    """Returns the rows with these field values."""
    return [
        row for row in rows if all(getattr(row, name) == value for name, value in fields.items())
    ]


def number(value: float) -> str:
    """Formats three significant digits, or all digits of the integer part."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def between(spread: Spread) -> str:
    """Formats `3.21 (3.10 to 3.48)`: median, smallest to largest."""
    return f"{number(spread.value)} ({number(spread.low)} to {number(spread.high)})"
