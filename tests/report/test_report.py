"""The report never claims more than an interval shows."""

import pandas as pd

from ift_scale.report import plots
from ift_scale.report.findings import findings


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


def test_an_interval_of_no_width_can_be_drawn() -> None:
    row = {"setting": "harmonious", "domain": "d", "group": "HOMO", "kl": 0.3, "kl_low": 0.1 + 0.2, "kl_high": 0.3}
    assert plots.measure(pd.DataFrame([row]), "kl", "KL").startswith("<svg")
