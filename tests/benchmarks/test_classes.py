"""The benchmark of all classes: its examples, its workload, its table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_classes, class_speed
from benchmarks.class_configs import example, model_types
from benchmarks.suite.classes import classes_table
from benchmarks.suite.rows import Sheet
from ift_scale.train.proof.shrink import shrink, text_class


def _found(**more: Any) -> dict[str, Any]:
    return {
        "class": "LlamaForCausalLM",
        "path": "pruned",
        "own_head": False,
        "difference": 1e-6,
        "tolerance": 1e-5,
        "rejected": {},
        "proof_seconds": 1.5,
        "cached_seconds": 0.01,
        "strategies": ["padded batches", "shared-prefix attention"],
        "scoring_gap": 2e-6,
        "rates": {
            "ours": [900.0, 1000.0],
            "one example at a time": [90.0, 100.0],
            "TRL": [9.0, 8.0],
        },
        "losses": {"ours": [4.0], bench_classes.SLOW: [4.0], "TRL": [4.4]},
        **more,
    }


def test_the_table_has_a_line_per_type_and_counts_classes() -> None:
    sheet = Sheet("classes", True)
    bench_classes.add_rows(sheet, "llama", _found())
    bench_classes.add_rows(sheet, "llama-two", _found())
    bench_classes.add_vllm_row(sheet, "llama-two", {"vllm_gap": 3e-6})
    rejected = {"pruned": "no `layers`", "packed": "leaks | by 1"}
    slow = _found(path="padded", rejected=rejected, strategies=[], **{"class": "MambaForCausalLM"})
    bench_classes.add_rows(sheet, "mamba", slow)
    bench_classes.add_rows(sheet, "blt", {"build_error": "no layers"})
    text = classes_table(sheet.rows)
    assert "2 classes, 3 model types" in text.replace("\n", " ")
    assert "| pruned | 1 |\n| padded | 1 |" in text
    line = "| 1e-06 | 1.5 | shared prefix | 2e-06 | 10.0 | 112.5 (losses differ) | not run |  |"
    assert f"| llama | LlamaForCausalLM | pruned {line}" in text
    assert "| 112.5 (losses differ) | 3e-06 |  |" in text
    assert "| one row |" in text and "| leaks / by 1 |" in text
    assert "| blt | no layers |" in text


def test_measuring_a_type_again_keeps_the_others(tmp_path: Path) -> None:
    for name, seconds in (("llama", 1.0), ("mamba", 2.0), ("llama", 3.0)):
        sheet = Sheet("classes", True)
        bench_classes.add_rows(sheet, name, _found(proof_seconds=seconds))
        path = bench_classes.put(sheet.rows, tmp_path)
    stored = [row for row in bench_classes.read_file(path) if row.quantity == "proof"]
    assert [(row.case, row.value) for row in stored] == [("llama", 3.0), ("mamba", 2.0)]
    sheet = Sheet("classes", True)
    bench_classes.add_vllm_row(sheet, "llama", {"vllm_gap": 3e-6})
    bench_classes.put(sheet.rows, tmp_path)
    again = Sheet("classes", True)
    bench_classes.add_rows(again, "llama", {"proof_error": "leaks"})
    left = bench_classes.read_file(bench_classes.put(again.rows, tmp_path))
    assert [row.who for row in left if row.case == "llama"] == ["vllm", "ours"]


def test_a_proof_measured_again_keeps_the_other_rows_of_its_type(tmp_path: Path) -> None:
    sheet = Sheet("classes", True)
    bench_classes.add_rows(sheet, "llama", _found(rejected={"pruned": "old"}))
    bench_classes.add_rows(sheet, "mamba", _found())
    stored = bench_classes.read_file(bench_classes.put(sheet.rows, tmp_path))
    again = Sheet("classes", True)
    bench_classes.add_proof_row(again, "llama", tmp_path / "work", stored)
    left = bench_classes.read_file(bench_classes.put(again.rows, tmp_path, "proof"))
    assert len(left) == len(stored)
    (row,) = (row for row in left if (row.case, row.quantity) == ("llama", "proof"))
    assert row.about["rejected"] == {} and row.about["scoring_gap"] == 2e-6 and row.value != 1.5


def test_the_peer_gets_the_same_examples(tmp_path: Path) -> None:
    tokens = class_speed.prepare(tmp_path)
    again = class_speed.load(tmp_path)
    assert np.array_equal(tokens.ids, again.ids)
    rows = [bench_classes.json.loads(x) for x in (tmp_path / "steps.jsonl").open()]
    assert len(rows) == class_speed.STEPS * class_speed.BATCH == len(tokens.lengths)
    learned = sum(label != -100 for row in rows for label in row["labels"])
    assert learned == tokens.supervised.sum() == tokens.supervised_counts.sum()
    assert class_speed.rate([1.0] * 4, tokens) == tokens.lengths.reshape(4, 32).sum(1)[1:].tolist()


@pytest.mark.engine
def test_most_classes_can_be_made_small() -> None:
    """All but byte-level, assistant and audio models, whose config is more than a decoder's."""
    failed = set()
    for name in model_types():
        try:
            shrink(text_class(example(name))[1])
        except Exception:
            failed.add(name)
    assert failed == {
        *("blt", "gemma4_assistant", "gemma4_unified_assistant"),
        *("musicgen", "musicgen_melody"),
    }


@pytest.mark.engine
@pytest.mark.parametrize(("name", "path"), [("llama", "pruned"), ("mamba", "padded")])
def test_a_class_is_measured(name: str, path: str, tmp_path: Path) -> None:
    class_speed.prepare(tmp_path)
    found = bench_classes.measure(name, tmp_path)
    assert not [field for field in found if field.endswith("_error")], found
    assert found["path"] == path and found["difference"] <= found["tolerance"]
    assert found["scoring_gap"] < 1e-4
    slow = found["losses"][bench_classes.SLOW]
    assert bench_classes.loss_gap(found["losses"]["ours"], slow) < 1e-4
