"""Machine files: the shipped ones load, rates are interpolated, and errors are reported."""

from pathlib import Path

import pytest

from ift_scale.errors import ConfigError, DataError
from ift_scale.estimate.machine import PRESETS, rate, read_machine
from ift_scale.train.monitor.throughput import known_peak


@pytest.mark.parametrize("file", sorted(PRESETS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_machine_loads(file: Path) -> None:
    machine = read_machine(file.stem)
    assert max(machine.matrix.values()) <= machine.peak_flops
    if machine.device == "gpu":  # MFU has the same meaning as in training
        assert machine.peak_flops == known_peak(machine.name.replace("-80", "")) * 1e12


def test_a_rate_between_points_is_interpolated_over_logarithms() -> None:
    curve = {10: 100.0, 1000: 400.0}
    assert rate(curve, 100) == pytest.approx(200.0)
    assert (rate(curve, 1), rate(curve, 10), rate(curve, 1000), rate(curve, 1e9)) == pytest.approx(
        (100, 100, 400, 400)
    )


def test_all_errors_of_a_machine_file_are_reported_together(tmp_path: Path) -> None:
    text = (PRESETS / "h200.yaml").read_text(encoding="utf-8")
    (tmp_path / "bad.yaml").write_text(
        text.replace("op_seconds: 6.0e-6", "op_second: 6.0e-6\nlinks: 2"), encoding="utf-8"
    )
    with pytest.raises(ConfigError) as caught:
        read_machine(str(tmp_path / "bad.yaml"))
    assert len(caught.value.problems) == 3
    assert any(
        "op_second: unknown key; did you mean 'op_seconds'?" in problem
        for problem in caught.value.problems
    )
    with pytest.raises(DataError, match="did you mean 'h100-sxm'"):
        read_machine("h100-sx")
