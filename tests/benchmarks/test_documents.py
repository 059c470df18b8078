"""The documents' figures are those of the stored rows, and the page draws every kind of row."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite import documents, goals, gpu, intervals, page
from benchmarks.suite.growth import fit, series
from benchmarks.suite.registry import CHECKOUT, results_folder
from benchmarks.suite.rows import Gate, Row, Sheet, ratios, read
from benchmarks.suite.speed import speed_table
from ift_scale.errors import DataError


def test_no_document_disagrees_with_the_rows() -> None:
    assert documents.stale() == [], "run `python -m benchmarks readme`"


def test_every_block_is_in_a_document() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in documents.documents())
    assert {name for name in documents.BLOCKS if f"<!-- bench:{name} -->" in text} == set(
        documents.BLOCKS
    )


def test_blocks_are_found_in_every_folder_of_the_documentation() -> None:
    found = documents.documents()
    assert found[:2] == [CHECKOUT / "README.md", CHECKOUT / "kernels" / "README.md"]
    assert found[2:] == sorted(found[2:])
    assert (
        set(found[2:])
        == set((CHECKOUT / "docs").glob("**/*.md"))
        > set((CHECKOUT / "docs" / "studies").glob("*.md"))
        > set()
    )


def test_a_block_is_only_a_table_under_a_caption() -> None:
    """Sentences around a table are written by hand."""
    for name in documents.BLOCKS.keys() - gpu.BLOCKS.keys():
        caption, _, rest = documents.BLOCKS[name](read(results_folder())).partition("|")
        assert re.match(r"$|20\d\d-\d\d-\d\d|No rows are stored yet: ", caption), name
        assert all(line.startswith("|") for line in rest.splitlines()[1:] if line), name


def test_another_measurement_makes_a_document_stale() -> None:
    path = CHECKOUT / "docs" / "results.md"
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
    assert "| 7.7 (" in documents.filled(path, text, changed)


def speeds(
    benchmark: str, ours: float, theirs: float, who: str, peer: str, case: str, **more: Any
) -> Sheet:
    """Rows of ours and of one peer, in one case."""
    sheet = Sheet(benchmark, True, more.pop("device", "cpu"))
    quantity = "questions per second" if benchmark == "probe" else "tokens per second"
    against = ratios([ours], {peer: [theirs]}, "higher")
    sheet.add(
        case,
        quantity,
        "1/s",
        [ours],
        more.get("gate", Gate(checked="losses", gap=0.0)),
        who,
        "higher",
        ratios=against,
    )
    sheet.add(
        case,
        quantity,
        "1/s",
        [theirs],
        more.get("peer_gate", Gate(checked="losses", gap=0.0)),
        peer,
        "higher",
    )
    return sheet


def lines(rows: list[Row], start: str) -> list[list[str]]:
    found = speed_table(rows).splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in found
        if line.startswith(f"| {start}")
    ]


def test_the_speed_table_names_what_was_not_run() -> None:
    tasks = [line.split("|")[1:3] for line in speed_table([]).splitlines()[2:]]
    assert [task.strip() for task, _ in tasks] == [
        "probing",
        "training",
        "the same arms, end to end",
        "all of it, on a GPU",
    ]
    assert all(reported.strip() == "not run yet" for _, reported in tasks)


def test_the_speed_table_says_how_many_predictions_are_the_same() -> None:
    gates = {"gate": Gate(checked="p", gap=0.01), "peer_gate": Gate(checked="p", gap=0.02)}
    apart = speeds("probe", 30.0, 2.0, "ours transformers", "lm-eval hf", "float32", **gates)
    ((task, ours, peer, ratio, same, _),) = lines(apart.rows, "probing")
    assert (task, ours, ratio) == ("probing, float32", "30 questions/s", "15 (15 to 15)")
    assert (
        peer == "lm-evaluation-harness, hf: 2 questions/s"
        and same == "97.0% of predictions or more"
    )
    equal = speeds("probe", 30.0, 2.0, "ours transformers", "lm-eval hf", "float32")
    assert lines(equal.rows, "probing")[0][4] == "yes: every prediction"
    unchecked = speeds(
        "probe", 30.0, 2.0, "ours transformers", "lm-eval hf", "float32", gate=Gate(checked="p")
    )
    assert lines(unchecked.rows, "probing")[0][4] == "not compared"


def test_the_speed_table_says_how_far_the_losses_are_apart() -> None:
    for gap, same in ((9e-8, "yes: losses to 9e-08"), (None, "not compared")):
        sheet = speeds(
            "train", 30.0, 10.0, "ours", "TRL", "float32", peer_gate=Gate(checked="losses", gap=gap)
        )
        assert lines(sheet.rows, "training")[0][4] == same


@pytest.mark.parametrize(
    ("accuracy", "same"),
    [(50.0, "yes: accuracy, consistency"), (48.5, "no: accuracy to 1.5 points")],
)
def test_the_speed_table_compares_what_the_arms_learnt(accuracy: float, same: str) -> None:
    sheet = speeds("end-to-end", 20.0, 10.0, "ours", "TRL", "harmonious")
    for who, value in (("ours", 50.0), ("TRL", accuracy)):
        sheet.add("harmonious", "accuracy", "%", [value], Gate(checked="answers"), who, "neither")
        sheet.add(
            "harmonious", "consistency", "rho", [0.6], Gate(checked="answers"), who, "neither"
        )
    more = speeds("end-to-end", 36.0, 12.0, "ours", "TRL", "incompatible")
    ((task, ours, peer, ratio, reported, _),) = lines([*sheet.rows, *more.rows], "the same")
    assert (task, ours, peer) == (
        "the same 2 arms, end to end",
        "20 to 36 tokens/s",
        "TRL: 10 to 12 tokens/s",
    )
    assert ratio == "2 to 3" and reported.startswith(same)


def test_the_speed_table_leaves_out_what_is_no_peer() -> None:
    sheet = speeds("train", 30.0, 10.0, "ours", "TRL", "float32")
    without = speeds("train", 30.0, 20.0, "ours", "without balance", "float32")
    assert [line[2] for line in lines(sheet.rows, "training")] == ["TRL: 10 tokens/s"]
    assert lines(without.rows, "training")[0][1] == "not run yet"


def test_the_speed_table_has_the_peers_of_a_gpu() -> None:
    card = "NVIDIA H100"
    rows = speeds(
        "train", 60.0, 30.0, "ours", "TRL 9.9, Liger-Kernel", "1b bfloat16", device=card
    ).rows
    ((task, _, peer, ratio, _, where),) = lines(rows, "training, 1b")
    assert (
        task == "training, 1b bfloat16"
        and peer == "TRL 9.9, Liger-Kernel: 30 tokens/s"
        and ratio == "2"
        and card in where
    )
    assert not lines(rows, "all of it")
    assert (
        lines([row for row in rows if row.who == "ours"], "all of it")[0][1]
        == "not compared with a peer yet"
    )


def test_a_block_that_is_not_known_is_told() -> None:
    with pytest.raises(DataError, match="did you mean 'probe-table'"):
        documents.filled(Path("README.md"), "<!-- bench:prob-table -->\n<!-- /bench -->", [])


def test_without_rows_a_block_says_how_to_measure() -> None:
    # tests/benchmarks/test_gpu_page.py has those of a GPU; simulated intervals are no rows.
    for name in documents.BLOCKS.keys() - gpu.BLOCKS.keys() - intervals.BLOCKS.keys():
        assert "`python -m benchmarks run" in documents.BLOCKS[name]([]), name


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
    for reported in (
        "accuracy against throughput",
        "times better than each peer",
        "slope 1.00 [1.00, 1.00]",
        "3.33 (3 to 3.67)",
    ):
        assert reported in text


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
    came = {goal: text for goal, text, _ in goals.results(sheet.rows)}
    assert came["memory model within 10%"].startswith("**not met**: +10% to +50%")
    assert came["training: 5 times TRL at its best setting"].startswith("No rows are stored yet")
