"""From measures to classes: each rule, its reason in words, and the thresholds."""

from typing import Any

import pytest

from ift_scale.config import ScreenConfig
from ift_scale.config.screen import JudgeConfig
from ift_scale.screen.classes import Classified, classify
from tests.screen.made import measures


def _class(kind: str, config: ScreenConfig | None = None, **values: Any) -> Classified:
    return classify(measures(kind, **values), "its form", config or ScreenConfig())


@pytest.mark.parametrize("kind", ["choice", "short"])
@pytest.mark.parametrize(
    ("right", "other", "name"),
    [(0.9, 0.05, "known"), (0.1, 0.8, "contradicts"), (0.5, 0.5, "uncertain"), (0, 0, "uncertain")],
)
def test_answers_that_the_model_is_sure_of(
    kind: str, right: float, other: float, name: str
) -> None:
    found = _class(kind, reference_prob=right, other_prob=other, other="C. gold")
    assert found.name == name and found.score == pytest.approx(right - other)
    assert name != "contradicts" or "'C. gold'" in found.reason


def test_the_threshold_is_a_setting() -> None:
    strict = ScreenConfig(confidence_threshold=0.85)
    values = {"reference_prob": 0.1, "other_prob": 0.8, "other": "C"}
    assert _class("choice", strict, **values).name == "uncertain"


def test_what_is_not_asked() -> None:
    assert _class("other") == Classified("not_about_knowledge", None, "its form")
    found = _class("long", too_long=True)
    assert found.name == "uncertain" and "context" in found.reason


LONG: dict[str, Any] = {
    "reference_prob": 0.2,
    "other_prob": 0.1,
    "other": "gold",
    "surprisal": 2.0,
    "agreement": 0.2,
    "consistency": 0.2,
    "worst_span": "is tin",
}


@pytest.mark.parametrize(
    ("values", "name", "said"),
    [
        ({}, "uncertain", "'is tin'"),
        ({"surprisal": 0.3}, "known", "0.30 nats"),
        ({"agreement": 0.9}, "known", "0.90"),
        ({"other_prob": 0.9, "reference_prob": 0.01}, "contradicts", "'gold'"),
        ({"facts": 4, "facts_known": 4, "facts_contradicted": 0}, "known", "4 facts"),
        ({"facts": 4, "facts_known": 2, "facts_contradicted": 2}, "contradicts", "knows 2"),
        ({"facts": 4, "facts_known": 2, "facts_contradicted": 1}, "uncertain", "contradicts 1"),
    ],
)
def test_longer_answers(values: dict[str, Any], name: str, said: str) -> None:
    config = ScreenConfig(judge=JudgeConfig(base_url="http://x", model="m"))
    found = _class("long", config, **LONG | values)
    assert found.name == name and said in found.reason
