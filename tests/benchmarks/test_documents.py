"""The documents' figures are those of the stored rows, and the page draws every kind of row."""

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.suite import documents, goals, gpu, page
from benchmarks.suite.growth import fit, series
from benchmarks.suite.registry import CHECKOUT, results_folder
from benchmarks.suite.rows import Gate, Row, Sheet, ratios, read
from ift_scale.errors import DataError


def test_no_document_disagrees_with_the_rows() -> None:
    assert documents.stale() == [], "run `python -m benchmarks readme`"


def test_every_block_is_in_a_document() -> None:
    text = "".join((CHECKOUT / name).read_text(encoding="utf-8") for name in documents.DOCUMENTS)
    assert {name for name in documents.BLOCKS if f"<!-- bench:{name} -->" in text} == set(
        documents.BLOCKS
    )


def test_another_measurement_makes_a_document_stale() -> None:
    path = CHECKOUT / "README.md"
    text, rows = path.read_text(encoding="utf-8"), read(results_folder())
    changed = [
        row.model_copy(
            update={
                "ratios": {n: r.model_copy(update={"value": 7.7}) for n, r in row.ratios.items()}
            }
        )
        for row in rows
    ]
    assert documents.filled(path, text, rows) == text
    assert "7.7 times" in documents.filled(path, text, changed)


def test_a_gpus_rows_are_told() -> None:
    sheet = Sheet("train", True, "NVIDIA H100")
    sheet.add(
        "1b bfloat16",
        "tokens per second",
        "1/s",
        [50_000.0],
        Gate(checked="losses"),
        better="higher",
    )
    text = documents.gpu_sentence(sheet.rows)
    assert "NVIDIA H100" in text and "50,000 tokens per second" in text


def test_a_block_that_is_not_known_is_told() -> None:
    with pytest.raises(DataError, match="did you mean 'probe'"):
        documents.filled(Path("README.md"), "<!-- bench:prob -->\n<!-- /bench -->", [])


def test_without_rows_a_block_says_how_to_measure() -> None:
    for name, block in documents.BLOCKS.items():
        remedy = (
            "benchmarks/gpu/first.sh"
            if name == "gpu"
            else "Nothing is stored yet: `python -m benchmarks run"
        )
        assert name in gpu.BLOCKS or remedy in block([]), (
            name
        )  # tests/benchmarks/test_gpu_page.py has those of a GPU


def growing(power: float) -> list[Row]:
    sheet = Sheet("scaling", True)
    for size in (10, 100, 1000, 10_000):
        sheet.add(
            "questions",
            "seconds",
            "s",
            [0.5 * size**power] * 3,
            Gate(checked="equal"),
            at={"questions": size},
        )
    return sheet.rows


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7])
def test_the_slope_is_the_power(power: float) -> None:
    (found,) = series(growing(power))
    line = fit(found.points)
    assert line is not None and line.slope == pytest.approx(power, abs=1e-6)
    assert line.low == pytest.approx(power, abs=1e-6) == line.high
    assert line.at(50) == pytest.approx(0.5 * 50**power)


def test_a_slope_of_noisy_points_has_an_interval_that_holds_it() -> None:
    line = fit([(1, 1.0), (10, 11.0), (100, 95.0), (1000, 1020.0)])
    assert line is not None and line.low is not None and line.high is not None
    assert line.low < 1 < line.high and line.high - line.low < 0.2
    assert fit([(1, 2.0), (1, 3.0)]) is None


def test_the_page_tells_how_far_predictions_are_off() -> None:
    sheet = Sheet("memory", True)
    for case, measured, predicted in (("a", 10.0, 11.0), ("b", 20.0, 30.0), ("c", 40.0, 40.0)):
        sheet.add(case, "bytes", "MiB", [measured], Gate(checked="bound"), "measured")
        sheet.add(case, "bytes", "MiB", [predicted], Gate(checked="bound"), "predicted")
    assert "bytes: error 10% in the median, 50% at most, 3 points" in page.page(sheet.rows)


def test_the_page_shows_ratios_growth_and_throughput_against_accuracy() -> None:
    sheet = Sheet("end-to-end", True)
    for who, rates in (("ours", [9.0, 10.0, 11.0]), ("TRL", [3.0, 3.0, 3.0])):
        against = ratios(rates, {"TRL": [3.0, 3.0, 3.0]}, "higher") if who == "ours" else {}
        sheet.add(
            "harmonious",
            "tokens per second",
            "1/s",
            rates,
            Gate(checked="losses", gap=1e-7),
            who,
            "higher",
            ratios=against,
        )
        sheet.add(
            "harmonious",
            "accuracy",
            "%",
            [55.0],
            Gate(checked="answers"),
            who,
            "neither",
            interval=(50.0, 60.0),
        )
    none = Sheet("scaling", True)  # a size of 0 has no place on a logarithmic axis
    none.add("questions", "seconds", "s", [3.0], Gate(checked="equal"), at={"questions": 0})
    text = page.page([*sheet.rows, *growing(1.0), *none.rows])
    for told in (
        "accuracy against throughput",
        "times better than each peer",
        "slope 1.00 [1.00, 1.00]",
        "3.33 (3 to 3.67)",
    ):
        assert told in text


def test_the_page_draws_what_the_simulator_foretells(tmp_path: Path) -> None:
    """A panel a machine and load, a line a model; only as the trainer sends."""
    stored = results_folder() / page.SCALING
    rows = json.loads(stored.read_text())["rows"]["predicted"]
    shutil.copy(stored, tmp_path)
    shutil.copy(results_folder() / "kernels.jsonl", tmp_path)
    page.write(tmp_path, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    panels = re.findall(
        r'<svg[^>]*aria-label="predicted MFU over GPUs, [^"]*".*?</svg>', text, re.DOTALL
    )
    assert len(panels) == len({(row["machine"], row["load"]) for row in rows}) == 6
    shown = [row for row in rows if row["as_trained"]]
    assert sum(panel.count("<circle") for panel in panels) == len(shown) < len(rows)
    assert {
        row["whole_buckets"] for row in shown if row["gpus"] > 64 and row["zero_stage"] == 2
    } == {True}


def test_goals_are_judged_by_what_was_measured() -> None:
    assert goals.judged({"float32": 14.0, "bfloat16": 12.0}, 10) == "14 (float32), 12 (bfloat16)"
    assert (
        goals.judged({"float32": 14.0, "bfloat16": 9.7}, 10)
        == "**met in part**: 14 (float32), 9.7 (bfloat16)"
    )
    assert (
        goals.judged({"float32": 3.27}, 5, "; told") == "**not met**: 3.27 (float32); told"
        and goals.judged({}, 5) is None
    )
    sheet = Sheet("memory", True)
    for case, measured, predicted in (("a", 10.0, 11.0), ("b", 20.0, 30.0)):
        for who, value in (("measured", measured), ("predicted", predicted)):
            sheet.add(case, "most bytes held in a step", "MiB", [value], Gate(checked="bound"), who)
    came = {goal: text for goal, text, _ in goals.told(sheet.rows)}
    assert came["the memory model within 10%"].startswith("**not met**: +10% to +50%")
    assert came["training: 5 times TRL in its best setting"].startswith("Nothing is stored yet")
