"""The report never claims more than an interval shows."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ift_scale.io.manifests import Edit
from ift_scale.report.facts import read
from ift_scale.report.findings import (
    all_findings,
    best_ratio,
    cautions,
    correlation,
    differences,
    paper_figures,
)
from ift_scale.report.verdicts import verdict
from tests.report import synthetic


def _comparison(difference: float, low: float, high: float, **more: Any) -> pd.DataFrame:
    row = {
        "first": "harmonious",
        "second": "incompatible",
        "domain": "d",
        "group": "HOMO",
        "seeds": 3,
        "questions": 100,
    }
    row |= {
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "excludes_zero": low > 0 or high < 0,
    }
    return pd.DataFrame([row | more])


def _first(found: pd.DataFrame) -> tuple[str, str]:
    reported = differences(found, paper_figures()["differences"], 0.95)[0]
    return reported.verdict, reported.text


def _base(accuracy: float, low: float, high: float) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "domain": "d",
                "group": "HOMO",
                "accuracy": accuracy,
                "accuracy_low": low,
                "accuracy_high": high,
            }
        ]
    )


def test_an_interval_that_includes_zero_is_no_effect() -> None:
    text = (
        "+2.0 points (−5.0 to +9.0): the interval includes zero, so no difference is shown; the "
        "test could have detected 8.1 points; paper +11.27."
    )
    assert _first(_comparison(0.02, -0.05, 0.09, detectable=0.081)) == ("cannot tell", text)


def test_an_effect_is_reported_with_its_interval() -> None:
    assert _first(_comparison(0.2, 0.1, 0.3)) == (
        "holds",
        "+20.0 points (+10.0 to +30.0); paper +11.27.",
    )
    assert _first(_comparison(-0.2, -0.3, -0.1)) == (
        "does not hold",
        "−20.0 points (−30.0 to −10.0); paper +11.27.",
    )


def test_an_effect_that_is_not_significant_after_correction() -> None:
    verdict, text = _first(_comparison(0.05, 0.01, 0.09, holm_p=0.2))
    assert (
        verdict == "cannot tell" and "not significant after Holm's correction (p = 0.200)" in text
    )
    assert _first(_comparison(0.05, 0.01, 0.09, holm_p=0.01))[0] == "holds"


def test_what_was_not_compared_was_not_asked() -> None:
    reported = differences(_comparison(0.2, 0.1, 0.3), paper_figures()["differences"], 0.95)
    assert [finding.verdict for finding in reported] == ["holds", "not asked", "not asked"]


def test_a_base_model_at_chance_is_reported_first() -> None:
    reported = cautions(_base(0.26, 0.2, 0.32), 0.25, 1)
    text = "The base model is indistinguishable from chance (25%) in every group"
    assert reported[0].startswith(text)
    assert reported[1].startswith("This run has one seed.")
    assert cautions(_base(0.6, 0.5, 0.7), 0.25, 3) == []


def test_an_edited_result_is_reported() -> None:
    edit = Edit(artifact="construct", files=["a.jsonl", "b.jsonl"], date="2026-11-27T10:00:00")
    assert cautions(_base(0.6, 0.5, 0.7), 0.25, 3, [edit]) == [
        "construct was edited by hand after it was made, and accepted on 2026-11-27: a.jsonl and "
        "b.jsonl."
    ]


def test_the_best_ratio() -> None:
    row = {
        "domain": "all",
        "group": "ID",
        "best_ratio": 0.6,
        "accuracy": 0.5,
        "best_other": 0.6,
        "difference": 0.03,
    }
    row |= {"low": 0.01, "high": 0.05, "seeds": 3, "reason": float("nan")}
    last = row | {"best_ratio": 1.0, "best_other": 0.8, "difference": -0.03}
    nothing = row | {"difference": float("nan"), "reason": "no arm of ratio 1"}
    rows = [
        row,
        row | {"low": -0.01},
        last | {"low": -0.06, "high": -0.01},
        last | {"low": -0.06, "high": 0.01},
        nothing,
    ]
    reported = best_ratio(pd.DataFrame([*rows, row | {"domain": "medicine"}]))
    assert [finding.verdict for finding in reported] == [
        "holds",
        "cannot tell",
        "does not hold",
        "cannot tell",
        "cannot tell",
    ]
    assert reported[0].text == "best at 0.6, +3.0 points compared with ratio 1 (+1.0 to +5.0)."
    assert (
        reported[2].text
        == "best at 1; the best of the others, 0.8, is −3.0 points compared with ratio 1 "
        "(−6.0 to −1.0)."
    )
    assert reported[4].text == "no arm of ratio 1."
    assert best_ratio(pd.DataFrame())[0].verdict == "not asked"


def test_a_correlation_without_a_value_has_its_reason() -> None:
    nan = float("nan")
    row = {
        "measure": "consistency",
        "group": "ID",
        "seeds": 3,
        "n": 32,
        "rho": 0.8,
        "p": 0.001,
        "rho_within": 0.75,
        "low": 0.6,
        "high": 0.9,
        "reason": nan,
    }
    none = row | {
        "rho_within": nan,
        "low": nan,
        "high": nan,
        "reason": "accuracy is the same everywhere",
    }
    rows = [row, row | {"low": -0.1}, row | {"rho_within": -0.75, "low": -0.9, "high": -0.6}, none]
    reported = correlation(pd.DataFrame(rows), paper_figures()["correlation"])
    assert [finding.verdict for finding in reported] == [
        "holds",
        "cannot tell",
        "does not hold",
        "cannot tell",
    ]
    assert reported[0].text == (
        "mean rank correlation within domains +0.75 (+0.60 to +0.90). Partial correlation +0.80; "
        "paper 0.78 to 0.87."
    )
    assert reported[3].text == "no correlation: accuracy is the same everywhere."


@pytest.mark.parametrize(
    ("low", "high", "p", "told"),
    [
        (0.01, 0.3, None, "holds"),
        (-0.3, -0.01, None, "does not hold"),
        (-0.1, 0.3, None, "cannot tell"),
        (0.01, 0.3, 0.051, "cannot tell"),
        (-0.3, -0.01, 0.051, "cannot tell"),
        (0.01, 0.3, 0.05, "holds"),
        (None, None, 0.001, "cannot tell"),
        (float("nan"), 0.3, 0.001, "cannot tell"),
    ],
)
def test_every_verdict_needs_seeds(
    low: float | None, high: float | None, p: float | None, told: str
) -> None:
    assert verdict(low, high, 3, p, 0.95) == told
    assert verdict(low, high, 1, p, 0.95) == "cannot tell (one seed)"
    assert (
        verdict(low, high, float("nan"), p, 0.95)
        == verdict(low, high, None, p, 0.95)
        == "cannot tell"
    )


def test_one_seed_supports_no_finding(tmp_path: Path) -> None:
    """The synthetic tables have intervals that exclude zero, as in an earlier version."""
    facts = synthetic.facts(tmp_path / "files", seeds=(0,))
    found = [finding for findings in all_findings(facts).values() for finding in findings]
    assert len(found) > 9 and {finding.verdict for finding in found} == {"cannot tell (one seed)"}
    several = synthetic.facts(tmp_path / "others", seeds=(0, 1, 2))
    assert "holds" in {
        finding.verdict for findings in all_findings(several).values() for finding in findings
    }


def test_findings_name_their_domains() -> None:
    assert _first(_comparison(0.2, 0.1, 0.3, domains=3, of_domains=4, domain="all"))[1] == (
        "+20.0 points (+10.0 to +30.0) over 3 of 4 domains; paper +11.27."
    )


def test_findings_of_a_run_without_tables(tmp_path: Path) -> None:
    assert not len(read(tmp_path / "none.csv", "correlation"))
    facts = synthetic.facts(tmp_path / "files", ("law",), ("natural",), (0,), full=False)
    assert {finding.verdict for found in all_findings(facts).values() for finding in found} == {
        "not asked"
    }
