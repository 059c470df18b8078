"""The report never claims more than an interval shows."""

import json
from pathlib import Path

import pandas as pd
import pytest

from ift_scale.records import Arm
from ift_scale.report import live, plots
from ift_scale.report.findings import findings
from ift_scale.report.run import reliability


def _comparison(difference: float, low: float, high: float, seeds: int = 3) -> pd.DataFrame:
    row = {"first": "harmonious", "second": "incompatible", "domain": "d", "group": "HOMO", "seeds": seeds, "questions": 100}
    row |= {"difference": difference, "difference_low": low, "difference_high": high, "excludes_zero": low > 0 or high < 0}
    return pd.DataFrame([row])


def _base(accuracy: float, low: float, high: float) -> pd.DataFrame:
    return pd.DataFrame([{"domain": "d", "group": "HOMO", "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}])


def test_an_interval_that_holds_zero_is_no_effect() -> None:
    told = findings(_comparison(0.02, -0.05, 0.09), _base(0.6, 0.5, 0.7), 0.25)
    assert told == [
        "HOMO: harmonious (H) minus incompatible (I) is +2.0% (-5.0% to +9.0%); the interval holds zero, so no difference is shown."
    ]


def test_an_effect_is_told_with_its_interval() -> None:
    told = findings(_comparison(0.2, 0.1, 0.3, seeds=1), _base(0.6, 0.5, 0.7), 0.25)
    assert told[0] == "HOMO: harmonious (H) minus incompatible (I) is +20.0% (+10.0% to +30.0%)."
    assert told[1].startswith("One seed only")


def test_a_base_model_at_chance_is_told_first() -> None:
    told = findings(_comparison(0.2, 0.1, 0.3), _base(0.26, 0.2, 0.32), 0.25)
    assert told[0].startswith("The base model cannot be told from chance (25%) in any group")


def test_plots_are_svg_and_the_same_every_time() -> None:
    picture = plots.differences(_comparison(0.2, 0.1, 0.3))
    assert picture.startswith("<svg") and "H - I  d  HOMO" in picture
    assert picture == plots.differences(_comparison(0.2, 0.1, 0.3))


KNOWLEDGE = {
    "ece": 0.1, "brier": 0.5, "letters": {"4": {"recall": [0.5, 0.4, None, 0.3], "recall_std": 0.08}},
    "calibration": [{"questions": 3, "confidence": 0.4, "accuracy": 1 / 3}, {"questions": 9, "confidence": 0.9, "accuracy": 0.8}],
}  # fmt: skip


def test_only_what_was_asked_for_is_told_of_the_knowledge() -> None:
    assert reliability(KNOWLEDGE).measure.tolist() == ["expected calibration error", "Brier score", "spread of recall, 4 options"]
    grades = {"HighlyKnown": 5, "MaybeKnown": 1, "WeaklyKnown": 0, "Unknown": 2}
    more = {
        "letters": {"4": {"recall": [0.5] * 4, "recall_std": 0, "letter_bias": 0.2, "probability": [0.4] * 4, "prior": [0.2] * 4}},
        "views": {"questions": 8, "agreement": 0.75}, "cloze": {"accuracy": 0.5, "agreement": 0.6}, "grades": grades,
        "free": {"questions": 7, "exact_match": 0.2, "f1": 0.3, "grades": grades},
    }  # fmt: skip
    told = dict(reliability(KNOWLEDGE | more)[["measure", "value"]].to_numpy().tolist())
    assert told["letter bias, 4 options"] == "0.200" and told["agreement of views"] == "0.750"
    assert told["Unknown, choice questions"] == "2" and told["exact match, free questions"] == "0.200"
    assert plots.letters((KNOWLEDGE | more)["letters"]).count("prior (PriDe)") == 1  # type: ignore[arg-type]
    assert plots.calibration(KNOWLEDGE["calibration"]).startswith("<svg")  # type: ignore[arg-type]


def test_an_interval_of_no_width_can_be_drawn() -> None:
    row = {"setting": "harmonious", "domain": "d", "group": "HOMO", "kl": 0.3, "kl_low": 0.1 + 0.2, "kl_high": 0.3}
    assert plots.measure(pd.DataFrame([row]), "kl", "KL").startswith("<svg")


def test_live_curves_average_over_seeds_where_steps_differ() -> None:
    rows = [(0, 0, 0.2), (0, 4, 0.6), (0, 8, 0.8), (1, 0, 0.2), (1, 2, 0.4)]  # seed 1 stopped early
    arms = pd.DataFrame([{"seed": seed, "step": step, "accuracy": value} for seed, step, value in rows])
    found = live.curve(arms, "accuracy").set_index("step")
    assert found.loc[2].tolist() == pytest.approx([0.4, 0.4, 0.4]) and found.loc[8].tolist() == pytest.approx([0.6, 0.4, 0.8])


def test_live_knowledge_is_a_table_and_pictures(tmp_path: Path) -> None:
    arms = [Arm(domain=domain, setting=setting, seed=0) for domain in ("law", "history") for setting in plots.LABELS]
    assert live.table(tmp_path, arms).empty
    row = {"step": 0, "accuracy": 0.5, "rank_correlation": 0.4, "divergence": 0.1, "letter_mass": 1.0, "questions": 9}
    row |= {"seconds": 0.1, "share": 0.02, "grades": {"Unknown": {"questions": 9, "accuracy": 0.5}}}
    for arm in arms[:-1]:
        (tmp_path / arm.name).mkdir()
        (tmp_path / arm.name / "live.jsonl").write_text("".join(json.dumps(row | {"step": step}) + "\n" for step in (0, 5)))
    found = live.table(tmp_path, arms)
    assert len(found) == 2 * (len(arms) - 1) and found.Unknown.eq(0.5).all() and live.graded(found) == ["Unknown"]
    picture = plots.live(found)
    assert picture.startswith("<svg") and "law: KL, nats" in picture and "history: accuracy" in picture
    assert "law: I incompatible" in plots.live_grades(found)
