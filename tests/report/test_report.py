"""The report never claims more than an interval shows."""

import pandas as pd

from ift_scale.report import plots
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
