"""The section on training items: left out without its tables, complete with them."""

from pathlib import Path

import pandas as pd
import pytest

from ift_scale.analyse.learnt import CURVE, MEASURES
from ift_scale.report.facts import COLUMNS, Facts
from ift_scale.report.sections import learnt
from tests.report import synthetic


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    return synthetic.facts(tmp_path, ("rivers",), ("harmonious",), (0,), full=False)


def _write(facts: Facts, slope: float | None, forms: tuple[str, ...] = ("free",)) -> None:
    rows = []
    for form in ("as trained", *forms):
        for grade in ("all", "Unknown"):
            row = {"setting": "harmonious", "domain": "rivers", "form": form, "grade": grade}
            row |= {
                "domains": 1,
                "of_domains": 1,
                "seeds": 1,
                "items": 24,
                "new_items": 6,
                "chance": 0.25,
            }
            for name in MEASURES:
                row |= {name: 0.5, f"{name}_low": 0.4, f"{name}_high": 0.6}
            rows.append(row | {"reason": ""})
    point = {"setting": "harmonious", "domain": "rivers", "seed": 0, "group": "HOMO"}
    point |= {"fitted_unknown": 0.3, "change": -0.1}
    curve = dict.fromkeys(CURVE.split()) | {"group": "HOMO", "points": 6, "reason": ""}
    curve |= {"known": slope, "unknown": slope, "r_squared": slope and 0.9}
    curve |= {"reason": "one seed: no interval over seeds" if slope else "fewer arms"}
    tables = {"learnt": rows, "learnt_points": [point], "learnt_curve": [curve]}
    for name, of_table in tables.items():
        pd.DataFrame(of_table).to_csv(facts.files[name], index=False)


def test_it_is_left_out_without_its_tables(facts: Facts) -> None:
    assert learnt.body(facts) is None


def test_it_shows_fit_transfer_and_the_curve(facts: Facts) -> None:
    _write(facts, -0.083)
    body = str(learnt.body(facts))
    assert body.count("<svg") == 3 and "nan" not in body and "show no options" not in body
    assert "50.0 [40.0,\u00a060.0]" in body and "as trained" in body and "−8.3" in body
    assert "one seed: no interval over seeds" in body
    for name in ("learnt", "learnt_points", "learnt_curve"):
        assert set(COLUMNS[name].split()) <= set(facts[name])


def test_the_form_with_options_is_explained(facts: Facts) -> None:
    _write(facts, None, ("with options", "free"))
    body = str(learnt.body(facts))
    assert "The sets show no options" in body and ">with options</th>" in body


def test_a_curve_that_is_not_determined_gives_the_reason(facts: Facts) -> None:
    _write(facts, None)
    assert "fewer arms" in str(learnt.body(facts))
