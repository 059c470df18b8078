"""The summary of what training did: columns of several tables, and none without them."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ift_scale.report.facts import COLUMNS, Facts
from ift_scale.report.sections import mechanisms
from tests.report import synthetic

SETTINGS = ("harmonious", "incompatible")


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    return synthetic.facts(tmp_path, ("rivers",), SETTINGS, (0,), full=False)


def _write(facts: Facts, name: str, rows: list[dict[str, Any]]) -> None:
    cell = {"domain": "rivers", "domains": 1, "of_domains": 1, "reason": ""}
    pd.DataFrame([cell | row for row in rows]).to_csv(facts.files[name], index=False)


def _value(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.2}


def test_it_is_left_out_without_its_tables(facts: Facts) -> None:
    assert mechanisms.body(facts) is None


def test_values_are_those_of_the_tables(facts: Facts) -> None:
    learnt = [
        {"setting": setting, "form": form, "grade": grade}
        | _value("gain", 0.3 if (form, grade) == ("as trained", "all") else 0.9)
        | _value("new_transfer", 0.4 if (form, grade) == ("free", "all") else 0.8)
        for setting in reversed(SETTINGS)
        for form in ("as trained", "free")
        for grade in ("all", "Unknown")
    ]
    _write(facts, "learnt", learnt)
    changed = [
        {"setting": setting, "group": group} | _value("content_change", change)
        for setting in SETTINGS
        for group, change in (("HOMO", 0.7), ("OOD", -0.05))
    ]
    _write(facts, "format_content", changed)
    hidden = [{"setting": name} | _value("lost_decodable", 0.6) for name in ("base", "harmonious")]
    _write(facts, "hidden", hidden)
    found = mechanisms.summary(facts).set_index("setting")
    assert set(found.index) == set(SETTINGS)
    harmonious = found.loc["harmonious"]
    assert harmonious.learnt == 0.3 and harmonious["transferred: free"] == 0.4
    assert harmonious.hidden == 0.6 and pd.isna(found.loc["incompatible"].hidden)
    assert harmonious.forgotten == 0.05
    assert (harmonious.forgotten_low, harmonious.forgotten_high) == pytest.approx((-0.15, 0.15))
    body = str(mechanisms.body(facts))
    assert "5.0 [−15.0,\u00a015.0]" in body and "paraphrase</th>" not in body and "nan" not in body
    assert "see the measure's own section" in body.replace("&#39;", "'")


def test_only_forms_that_were_asked_are_shown(facts: Facts) -> None:
    rows = [
        {"setting": "harmonious", "form": form, "grade": "all"}
        | _value("gain", 0.3)
        | _value("new_transfer", 0.4)
        for form in ("as trained", "with options")
    ]
    _write(facts, "learnt", rows)
    body = str(mechanisms.body(facts))
    assert "transferred: with options</th>" in body and "other order</th>" not in body


def test_its_columns_are_read_from_tables_that_exist() -> None:
    for column in mechanisms.COLUMNS:
        needed = {*column.rows, *(f"{column.name}{end}" for end in ("", "_low", "_high"))}
        assert needed <= set(COLUMNS[column.table].split()), column.title
