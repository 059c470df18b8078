"""The section on hidden states: left out without its tables, complete with them."""

from pathlib import Path

import pandas as pd
import pytest

from ift_scale.analyse.hidden import LAYER_MEASURES, MEASURES
from ift_scale.report.facts import COLUMNS, Facts
from ift_scale.report.sections import hidden
from tests.report import synthetic


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    return synthetic.facts(tmp_path, ("rivers",), ("harmonious",), (0,), full=False)


def _write(facts: Facts, lost_decodable: float | None) -> None:
    rows, layers = [], []
    for setting in ("base", "harmonious"):
        cell = {"setting": setting, "domain": "rivers", "domains": 1, "of_domains": 1}
        row = cell | {"best_layer": 2.0, "layers": 3, "decision": 2.5, "reason": "", "seeds": 1}
        for name in MEASURES:
            row |= {name: 0.5, f"{name}_low": 0.4, f"{name}_high": 0.6}
        row |= {"lost_questions": 7}
        if setting == "base" or lost_decodable is None:
            row |= {"lost_decodable": None, "lost_decodable_low": None}
        else:
            row |= {"lost_decodable": lost_decodable}
        rows.append(row)
        for layer in range(4):
            of_layer = cell | {"layer": layer, "reason": ""}
            for name in LAYER_MEASURES:
                of_layer |= {name: layer / 4, f"{name}_low": 0.0, f"{name}_high": 0.9}
            layers.append(of_layer)
    pd.DataFrame(rows).to_csv(facts.files["hidden"], index=False)
    pd.DataFrame(layers).to_csv(facts.files["hidden_layers"], index=False)


def test_it_is_left_out_without_its_tables(facts: Facts) -> None:
    assert hidden.body(facts) is None


def test_it_shows_curves_by_layer_and_the_lost_questions(facts: Facts) -> None:
    _write(facts, 0.3)
    body = str(hidden.body(facts))
    assert body.count("<svg") == 3 and "base model" in body and "nan" not in body
    assert "30.0 [40.0,\u00a060.0]" in body and "70.0" in body  # hidden and gone
    assert set(COLUMNS["hidden"].split()) <= set(facts["hidden"])


def test_without_lost_questions_it_gives_the_reason(facts: Facts) -> None:
    _write(facts, None)
    assert "there is no such question." in str(hidden.body(facts))
