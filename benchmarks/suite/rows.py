"""Benchmark results as rows of one schema: JSON lines in benchmarks/results, a file a benchmark.

A row is one figure of one program in one case, with the spread of its repeats, what was checked before it was kept, and what it was
measured on. `store` takes the new rows for the old ones of the same program on the same device, so a GPU's rows outlive a CPU's.
On a GPU, where each command measures a part, new rows replace only those of the same figures.
"""

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ift_scale.io.files import read_jsonl, write_json, write_jsonl
from ift_scale.io.machine import git_commit, machine_name, package_versions
from ift_scale.records import Record

OURS = "ours"
MEASURED, PREDICTED = "measured", "predicted"
"""Whose a figure is that a model of ours also foretells."""
OUT = "IFT_SCALE_BENCH_OUT"
"""Names the folder that drivers write to in place of benchmarks/results."""
Better = Literal["higher", "lower", "neither"]


class Spread(Record):
    """Repeats of one measurement. `samples`: as measured, in their order, where they were kept; p20 and p80 need them."""

    value: float
    """The median (p50)."""
    p20: float | None = None
    p80: float | None = None
    low: float
    high: float
    repeats: int = Field(ge=1)
    samples: tuple[float, ...] = ()


class Gate(Record):
    """What was checked before the figure was kept, and how far it was from the reference. No gap: it was none."""

    checked: str
    gap: float | None = None
    tolerance: float | None = None


class Row(Spread):
    """One figure. `who`: the program that it is of; `ratios`: by peer, how many times better `who` did, repeat by repeat."""

    benchmark: str
    case: str
    """Workload and what it ran under, such as a dtype."""
    at: dict[str, float] = Field(default_factory=dict)
    """The sizes that the figure is a function of, where it is one of a series."""
    who: str = OURS
    quantity: str
    unit: str
    better: Better
    ratios: dict[str, Spread] = Field(default_factory=dict)
    interval: tuple[float, float] | None = None
    """95%, where the figure is a statistic rather than a measurement."""
    gate: Gate
    about: dict[str, Any] = Field(default_factory=dict)
    """Settings, workload and curves behind the figure."""
    date: str
    commit: str | None
    versions: dict[str, str]
    machine: str
    device: str = "cpu"

    @property
    def key(self) -> tuple[Any, ...]:
        """What names the same figure of another run."""
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
        """`at` in words."""
        return ", ".join(f"{value:,.15g} {name}" for name, value in self.at.items())


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """The fields of a `Spread`. Quantiles are interpolated linearly between the samples in order."""
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
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def ratios(
    ours: Sequence[float], theirs: Mapping[str, Sequence[float]], better: Better
) -> dict[str, Spread]:
    """By peer, how many times better ours was in each repeat that both have: the ratio of the first with the first, and so on."""
    found = {}
    for name, values in theirs.items():
        pairs = list(zip(ours, values, strict=False))
        found[name] = Spread(**spread([a / b if better == "higher" else b / a for a, b in pairs]))
    return found


def origin(device: str = "cpu") -> dict[str, Any]:
    """When, by which code and on what a row is measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "versions": package_versions(),
        "machine": machine_name(),
        "device": device,
    }


class Sheet:
    """Collects one run's rows of a benchmark. `quick`: of sizes that show no more than that it runs."""

    def __init__(self, benchmark: str, quick: bool, device: str = "cpu"):
        self._quick = quick
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
        return store(self.rows, out_folder(self._quick))


def store_inputs(name: str, found: Any) -> Path:
    """Put into results/NAME.json what rows and documents are made from again (calibrations, say), with its origin."""
    from benchmarks.suite.registry import results_folder

    path = results_folder() / f"{name}.json"
    write_json(path, {"benchmark": name, **origin(), "rows": found})
    return path


def out_folder(quick: bool) -> Path:
    """Where drivers put their rows: what `python -m benchmarks run` says, else benchmarks/results; of a quick run runs/bench-quick."""
    from benchmarks.suite.registry import QUICK, results_folder

    given = os.environ.get(OUT)
    return Path(given) if given else QUICK if quick else results_folder()


def store(rows: Sequence[Row], folder: Path) -> Path:
    """Put rows of one benchmark into FOLDER/BENCHMARK.jsonl, in place of the same programs' (CPU) or the same figures' (GPU)."""
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
    """The rows of a file, none where there is no file; DataError where it holds anything else."""
    return read_jsonl(path, Row) if path.is_file() else []


def read(path: Path) -> list[Row]:
    """The rows of a file or of all *.jsonl of a folder."""
    if path.is_dir():
        return [row for file in sorted(path.glob("*.jsonl")) for row in read_file(file)]
    return read_file(path)


def only(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows whose fields are these."""
    return [
        row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())
    ]


def number(value: float) -> str:
    """Three digits that count, or all of a whole part."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def between(spread: Spread) -> str:
    """`3.21 (3.10 to 3.48)`: the median, smallest to largest."""
    return f"{number(spread.value)} ({number(spread.low)} to {number(spread.high)})"
