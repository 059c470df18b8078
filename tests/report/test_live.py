"""The table of live knowledge and its curves."""

import json
from pathlib import Path

import pandas as pd
import pytest

from ift_scale.records import Arm
from ift_scale.report import live
from ift_scale.report.sections.training import live_knowledge, losses
from tests.report import synthetic


def test_live_curves_average_over_seeds_where_steps_differ() -> None:
    rows = [(0, 0, 0.2), (0, 4, 0.6), (0, 8, 0.8), (1, 0, 0.2), (1, 2, 0.4)]  # seed 1 stopped early
    arms = pd.DataFrame(
        [{"seed": seed, "step": step, "accuracy": value} for seed, step, value in rows]
    )
    found = live.curve(arms, "accuracy").set_index("step")
    assert found.loc[2].tolist() == pytest.approx([0.4, 0.4, 0.4]) and found.loc[
        8
    ].tolist() == pytest.approx([0.6, 0.4, 0.8])


def test_live_knowledge_is_a_table(tmp_path: Path) -> None:
    arms = [
        Arm(domain=domain, setting="harmonious", seed=0)
        for domain in ("law", "history", "medicine")
    ]
    assert live.table(tmp_path, arms).empty
    row = {
        "step": 0,
        "accuracy": 0.5,
        "rank_correlation": 0.4,
        "divergence": 0.1,
        "letter_mass": 1.0,
        "questions": 9,
    }
    row |= {"seconds": 0.1, "share": 0.02, "grades": {"Unknown": {"questions": 9, "accuracy": 0.5}}}
    for arm in arms[:-1]:
        (tmp_path / arm.name).mkdir()
        (tmp_path / arm.name / "live.jsonl").write_text(
            "".join(json.dumps(row | {"step": step}) + "\n" for step in (0, 5))
        )
    found = live.table(tmp_path, arms)
    assert (
        len(found) == 2 * (len(arms) - 1)
        and found.Unknown.eq(0.5).all()
        and live.graded(found) == ["Unknown"]
    )


def test_live_knowledge_is_drawn_by_domain_and_grade(tmp_path: Path) -> None:
    facts = synthetic.facts(
        tmp_path / "files", ("law", "history"), ("harmonious", "incompatible"), (0, 1)
    )
    picture = live_knowledge(facts)
    assert (
        picture is not None
        and "law: KL, nats" in picture
        and "history: accuracy" in picture
        and "law: I incompatible" in picture
    )


def test_the_validation_loss_is_drawn_next_to_the_training_loss(tmp_path: Path) -> None:
    settings = ("harmonious", "incompatible")
    facts = synthetic.facts(tmp_path / "files", ("law", "history"), settings, (0, 1))
    picture = losses(facts)
    assert picture is not None and "dotted: validation loss" in picture
    assert picture.count('class="dotted"') == 2 * len(settings)  # a line per panel and setting
    plain = losses(synthetic.facts(tmp_path / "plain", ("law",), settings, (0,), full=False))
    assert plain is not None and "dotted" not in plain and "validation" not in plain
