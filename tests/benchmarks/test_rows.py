"""The rows' schema, what replaces what, and what of today's results is stored."""

from pathlib import Path

import pytest

from benchmarks.suite import rows
from benchmarks.suite.registry import BENCHMARKS, results_folder
from benchmarks.suite.rows import Gate, Row, Sheet, only, ratios, read, read_file, spread, store
from ift_scale.errors import DataError

GATE = Gate(checked="equal", gap=0, tolerance=0)


def row(value: float = 1.0, **changes: object) -> Row:
    sheet = Sheet("train", True)
    sheet.add("float32", "tokens per second", "1/s", [value], GATE, better="higher")
    return sheet.rows[0].model_copy(update=changes)


def test_a_spread_keeps_the_repeats_and_their_quantiles() -> None:
    found = spread([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (found["value"], found["low"], found["high"], found["repeats"]) == (3.0, 1.0, 5.0, 5)
    assert (found["p20"], found["p80"]) == (pytest.approx(1.8), pytest.approx(4.2))
    assert found["samples"] == (3.0, 1.0, 2.0, 5.0, 4.0)
    assert spread([1.0, 2.0])["value"] == 1.5


def test_ratios_are_of_one_repeat() -> None:
    """Rates: ours over theirs; times: theirs over ours; a peer of fewer repeats is compared in those."""
    found = ratios([10.0, 30.0], {"peer": [5.0, 10.0], "slow": [1.0]}, "higher")
    assert (found["peer"].low, found["peer"].high, found["slow"].value) == (2.0, 3.0, 10.0)
    assert ratios([2.0], {"peer": [4.0]}, "lower")["peer"].value == 2.0


def test_on_a_gpu_each_command_adds_what_it_measured(tmp_path: Path) -> None:
    store([row(1.0, device="a GPU"), row(2.0, device="a GPU", case="bfloat16")], tmp_path)
    path = store([row(9.0, device="a GPU"), row(3.0, device="another")], tmp_path)
    assert [(r.case, r.device, r.value) for r in read_file(path)] == [
        ("bfloat16", "a GPU", 2.0),
        ("float32", "a GPU", 9.0),
        ("float32", "another", 3.0),
    ]


def test_new_rows_replace_those_of_the_same_program_on_the_same_device(tmp_path: Path) -> None:
    store([row(1.0), row(2.0, who="TRL"), row(3.0, device="a GPU")], tmp_path)
    path = store([row(9.0, case="bfloat16")], tmp_path)
    assert [(r.who, r.device, r.case, r.value) for r in read_file(path)] == [
        ("TRL", "cpu", "float32", 2.0),
        ("ours", "a GPU", "float32", 3.0),
        ("ours", "cpu", "bfloat16", 9.0),
    ]


def test_a_row_that_is_none_is_told_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(row().model_dump_json() + "\n" + '{"value": 1}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:2"):
        read_file(path)


def test_a_driver_writes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rows.OUT, str(tmp_path))
    sheet = Sheet("train", False)
    sheet.add("float32", "seconds", "s", [1.0], GATE)
    assert sheet.store() == tmp_path / "train.jsonl"


def test_the_stored_rows_are_of_known_benchmarks_and_were_checked() -> None:
    found = read(results_folder())
    assert {r.benchmark for r in found} <= set(BENCHMARKS)
    assert all(r.low <= r.value <= r.high and r.gate.checked for r in found)
    for file in results_folder().glob("*.jsonl"):
        assert {r.benchmark for r in read_file(file)} == {file.stem}
    over = [
        r.title
        for r in found
        if r.gate.gap is not None
        and r.gate.tolerance is not None
        and r.gate.gap > r.gate.tolerance + 1e-12
    ]
    assert not over


def test_only_selects_by_fields() -> None:
    assert [r.value for r in only([row(1.0), row(2.0, who="TRL")], who="TRL")] == [2.0]
