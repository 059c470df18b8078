"""The section on doses: the frontier, curves for the kinds of dose there are, and the table."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ift_scale.report.facts import Facts
from ift_scale.report.sections import dose
from ift_scale.treatments import dose_of
from tests.report import synthetic

SETTINGS = (
    "harmonious",
    "harmonious-epoch-1",
    "harmonious-average-0.5",
    "harmonious-restored-0.01",
    "harmonious-restored-0.2",
    "harmonious-size-8",
    "incompatible",
)


def _facts(folder: Path, settings: tuple[str, ...], **more: Any) -> Facts:
    facts = synthetic.facts(folder, ("rivers",), ("harmonious",), (0, 1), full=False)
    rows = []
    for number, setting in enumerate(settings):
        named = dose_of(setting)
        row = {"setting": setting, "domain": "rivers", "domains": 1, "of_domains": 1, "seeds": 2}
        row |= {"treatment": named.of, "size": named.size, "kind": named.kind}
        row |= {"amount": named.amount, "reason": "", "base": "few-shot"}
        for name, value in (("acquired", 0.3 - number / 50), ("forgotten", 0.2 - number / 40)):
            row |= {name: value, f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}
            change = 0.01 if named.whole else None
            row |= {f"{name}_change{end}": change for end in ("", "_low", "_high")}
        rows.append(row | more)
    pd.DataFrame(rows).to_csv(facts.files["dose"], index=False)
    return facts


def test_every_kind_of_dose_has_curves(tmp_path: Path) -> None:
    text = str(dose.body(_facts(tmp_path, SETTINGS)))
    for title, _ in dose._AXES.values():
        assert title in text
    assert "Acquired and forgotten" in text and "square: size" in text and "down: restored" in text
    assert "The base model answers few-shot and the arm 0-shot" in text
    assert text.count("<tr>") == 1 + len(SETTINGS)


def test_without_doses_there_is_only_the_frontier(tmp_path: Path) -> None:
    text = str(dose.body(_facts(tmp_path, ("harmonious", "incompatible"), base="0-shot")))
    assert "Both answer 0-shot." in text
    assert "Ringed" in text and not any(title in text for title, _ in dose._AXES.values())


def test_without_other_domains_there_is_no_frontier(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("forgotten", "forgotten_low", "forgotten_high"))
    text = str(dose.body(_facts(tmp_path, SETTINGS, **nothing, reason="forgotten: not asked")))
    assert "Ringed" not in text and "By epoch" in text and "forgotten: not asked" in text


def test_no_table_no_section(tmp_path: Path) -> None:
    facts = synthetic.facts(tmp_path, ("rivers",), ("harmonious",), (0,), full=False)
    assert dose.body(facts) is None


@pytest.mark.parametrize(
    ("points", "right"),
    [
        ([(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)], [0, 1, 2]),
        ([(0.1, 0.2), (0.2, 0.1), (0.3, 0.3)], [1, 2]),
        ([(0.1, 0.1), (0.1, 0.1)], [0]),
        ([(0.1, 0.1), (0.1, 0.2), (0.2, 0.1)], [2]),
        ([(0.3, None), (0.1, 0.1)], [1]),
    ],
)
def test_the_frontier(points: list[tuple[float, float | None]], right: list[int]) -> None:
    frame = pd.DataFrame(points, columns=["acquired", "forgotten"])
    assert sorted(dose.best(frame).index) == right
