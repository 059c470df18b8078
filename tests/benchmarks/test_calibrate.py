"""Calibration: links come out of times as they went in, a machine file is read as it was written, and the command makes one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import calibrate
from ift_scale.estimate import collectives
from ift_scale.estimate.machine import Link, read_machine

CURVE = {16: 1e9, 1024: 4e9}
RATES = {
    "matrix": CURVE,
    "attention": CURVE,
    "memory": CURVE,
    "in_place": CURVE,
    "op_seconds": 1e-6,
}


@pytest.mark.parametrize("ranks", [2, 4])
def test_links_are_those_that_the_times_were_made_of(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times by the predictor's own formulas; so a collective's prediction from its calibration is its time."""
    known = Link(bandwidth=2e9, latency=3e-4)
    machine = calibrate.machine_of(
        RATES | {"collectives": {"all_reduce": known.model_dump()}}, ranks, "wall"
    )

    def timed(call: Any) -> float:
        kind, elements = call
        return collectives.seconds(collectives.Collective(kind, 4 * elements, 1), machine, ranks)

    monkeypatch.setattr(calibrate.dist, "get_world_size", lambda: ranks)
    monkeypatch.setattr(calibrate, "_collective", lambda kind, elements, ranks: (kind, elements))
    found = calibrate.links(timed)  # type: ignore[arg-type]
    assert set(found) == {"all_reduce", "all_gather", "reduce_scatter", "reduce"}
    for link in found.values():
        assert link == pytest.approx(known.model_dump(), rel=1e-6)


def test_a_written_machine_is_read_again(tmp_path: Path) -> None:
    machine = calibrate.machine_of(RATES, 1, "cpu")
    calibrate.write(machine, tmp_path / "here.yaml")
    assert read_machine(str(tmp_path / "here.yaml")) == machine
    assert machine.peak_flops == 4e9 and machine.inside is None and "cpu clock" in machine.source


@pytest.mark.engine
def test_the_command_measures_this_machine(tmp_path: Path) -> None:
    out = tmp_path / "here.yaml"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.calibrate", out, "--ranks", "2", "--repeats", "1"],
        check=True,
    )
    machine = read_machine(str(out))
    assert machine.devices_per_node == 2 and len(machine.collectives) == 4
    assert 1e8 < machine.peak_flops < 1e13 and all(
        link.bandwidth > 1e6 for link in machine.collectives.values()
    )
