"""Score files to columns and measures."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ift_scale.analyse.answers import answers_of, compare, read_scores, split_by_group, table_of
from tests.analyse.scores import BASE, BETTER, WORSE, choice, choices


def test_consistency_is_one_where_nothing_changed() -> None:
    same, changed = (
        compare(answers_of(table_of(BASE)), answers_of(table_of(choices(right))))
        for right in (BETTER, WORSE)
    )
    assert (
        same.consistency.min() == pytest.approx(1)
        and same.kl.max() == pytest.approx(0)
        and same.agreement.min() == 1
    )
    wrong = changed[changed.accuracy == 0]
    assert (
        len(wrong) == 20
        and wrong.consistency.max() < 0
        and wrong.kl.min() > 0.5
        and wrong.agreement.max() == 0
    )


def test_an_option_that_underflows_leaves_the_divergence_finite() -> None:
    one = choice("q0", True).model_copy(update={"probs": [1.0, 0.0, 0.0, 0.0]})
    assert np.isfinite(
        compare(answers_of(table_of([BASE[0]])), answers_of(table_of([one]))).kl.iloc[0]
    )


def test_splitting_a_file_by_group(tmp_path: Path) -> None:
    others = choices(BETTER, "m", group="arc")
    dev = [s.model_copy(update={"split": "dev"}) for s in choices(BETTER, "dev")]
    free = [s.model_copy(update={"kind": "free"}) for s in choices(BETTER[:3], "free")]
    rows = [score.model_dump() for score in (*BASE, *others, *dev, *free)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    table = read_scores(tmp_path / "scores.parquet")
    parts = split_by_group(
        table, lambda domain, collection, group: group or ("HOMO" if collection == "pool" else None)
    )
    assert {name: len(part) for name, part in parts.items()} == {
        "HOMO": 40,
        "arc": 40,
        "HOMO free": 3,
    }
    assert split_by_group(table, lambda *_: None) == {}
