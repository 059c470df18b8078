"""The section on format and content: left out without its tables, complete with them."""

from pathlib import Path

import pandas as pd
import pytest

from ift_scale.analyse.forgetting import FITS, POINTS
from ift_scale.analyse.format_content import ACCURACIES, MEASURES
from ift_scale.report.facts import COLUMNS, Facts
from ift_scale.report.sections import format_content
from tests.report import synthetic


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    return synthetic.facts(tmp_path, ("rivers",), ("harmonious", "natural"), (0,), full=False)


def _write(facts: Facts, fit: dict[str, object]) -> None:
    rows = []
    for setting in ("harmonious", "natural"):
        row = {"setting": setting, "domain": "rivers", "group": "HOMO", "domains": 1, "seeds": 1}
        row |= {"of_domains": 1, "questions": 50, "reason": ""}
        for name in (*ACCURACIES, *MEASURES):
            row |= {name: 0.5, f"{name}_low": 0.4, f"{name}_high": 0.6}
        rows.append(row | {"content_change": -0.123, "content_change_low": -0.2})
    points = [["rivers", s, 0, 0.1, 0.2, 0.3] for s in ("harmonious", "natural")]
    pd.DataFrame(rows).to_csv(facts.files["format_content"], index=False)
    pd.DataFrame(points, columns=list(POINTS)).to_csv(facts.files["forgetting"], index=False)
    fits = pd.DataFrame([fit], columns=list(FITS)) if fit else pd.DataFrame(columns=list(FITS))
    fits.to_csv(facts.files["forgetting_fit"], index=False)


def test_it_is_left_out_without_its_tables(facts: Facts) -> None:
    assert format_content.body(facts) is None


def test_it_shows_both_parts_and_the_line(facts: Facts) -> None:
    fit = {"measure": "kl_own", "arms": 2, "domains": 1, "slope": 0.25, "slope_low": 0.125}
    _write(facts, fit | {"slope_high": 0.375, "r_squared": 0.5, "r_squared_quadratic": 0.75})
    body = str(format_content.body(facts))
    assert body.count("<svg") == 2 and "nan" not in body and "remark" not in body
    assert "−12.3 [−20.0,\u00a0+60.0]" in body and "+25.0 [+12.5,\u00a0+37.5]" in body
    assert body.count('<circle class="hollow"') == 2  # format
    assert "content, few-shot" in body
    for name in ("format_content", "forgetting", "forgetting_fit"):
        assert set(COLUMNS[name].split()) <= set(facts[name])


@pytest.mark.parametrize(
    ("fit", "reason"),
    [
        ({"measure": "kl_own", "arms": 2, "domains": 1, "reason": "no line: few"}, "no line: few"),
        ({}, "it needs OOD questions"),
    ],
)
def test_a_line_that_does_not_exist_has_its_reason(
    facts: Facts, fit: dict[str, object], reason: str
) -> None:
    _write(facts, fit)
    assert reason in str(format_content.body(facts))
