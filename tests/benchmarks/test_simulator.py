"""The stored comparison of the simulator with measured steps: what it says of them today, and what the docs say of it."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


def _stored(name: str) -> Any:
    return json.loads(
        (ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")
    )["rows"]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return _module("bench_simulator")


@pytest.fixture(scope="module")
def stored() -> Any:
    return _stored("simulator")


def test_the_scaling_that_the_docs_tell_is_predicted_today() -> None:
    bench, both = _module("predict_scaling"), _stored("predicted_scaling")
    stored = both["predicted"]
    assert bench.rows() == stored and bench.hpz_rows() == both["hpz"]
    lines = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("| llama")] == bench.table(stored)
    machines = tuple(f"| {name} |" for name in bench.HPZ_MACHINES)
    assert [line for line in lines if line.startswith(machines)] == bench.hpz_table(both["hpz"])
    assert {(row["model"], row["gpus"]) for row in both["hpz"]} == {
        (m, n) for m in bench.HPZ_MODELS for n in (64, 128, 256, 512)
    }


def test_the_stored_predictions_are_those_of_today(bench: ModuleType, stored: Any) -> None:
    """A change of the model that moves a prediction wants the results and the docs written anew (`bench_simulator.py FOLDER`)."""
    for world_size in bench.STAGES:
        machine = bench.calibrate.machine_of(
            bench.both(*stored[f"calibrations of {world_size}"]), world_size, stored["clock"]
        )
        points = [row for row in stored["points"] if row["world_size"] == world_size]
        assert len(points) == len(bench.grid(world_size))
        for row in points[::4]:
            again = bench.predicted(row, machine, world_size)
            assert again["predicted"] == pytest.approx(row["predicted"], rel=1e-6)
            assert again["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)


def test_the_errors_that_the_docs_tell_are_the_stored_ones(bench: ModuleType, stored: Any) -> None:
    text = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| [12] \| \d", line)]
    assert rows == bench.table(stored["points"])
    assert stored["plain"] == pytest.approx(
        bench.summary([row["error"] for row in stored["points"]])
    )
    assert (
        f"median of the absolute errors {stored['plain']['median_absolute_error']:.1%}"
        in text.replace("\n", " ")
    )
    assert f"largest {stored['plain']['worst_absolute_error']:.0%}" in text.replace("\n", " ")


def test_one_factor_is_fitted_without_the_point_that_it_is_judged_on(bench: ModuleType) -> None:
    """Three points whose host takes just three times what is predicted: each is foretold exactly by the other two."""
    rows = [
        {"predicted": 1.0 + host, "host": host, "measured": 1.0 + 3 * host}
        for host in (0.1, 0.2, 0.4)
    ]
    found = bench.fitted(rows)
    assert found["host_factor"] == pytest.approx(3.0) and found[
        "worst_absolute_error"
    ] == pytest.approx(0, abs=1e-12)
    odd = bench.fitted([*rows, {"predicted": 1.1, "host": 0.1, "measured": 2.0}])
    assert odd["worst_absolute_error"] == pytest.approx(abs(1.3 / 2.0 - 1))
