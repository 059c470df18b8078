"""Treatments: what the filtered set has of each example."""

import json
from typing import Any

import pytest

from ift_scale.config import ScreenConfig
from ift_scale.screen.classes import Classified
from ift_scale.screen.filtered import Filter, own_response
from ift_scale.screen.kinds import recognise
from tests.screen.made import CHOICE, conversation, measures

EXPLAINED = "B. mercury\nMercury melts far below zero degrees."


def _treated(
    treatment: str,
    answer: str = EXPLAINED,
    cls: str = "contradicts",
    weight: float = 1.0,
    **more: Any,
) -> tuple[dict[str, Any] | None, dict[str, int]]:
    settings = ScreenConfig.model_validate({"treatment": treatment, **more})
    chosen, made = Filter(settings), conversation(CHOICE, answer, weight)
    verdict = Classified(cls, -0.9, "reason")  # type: ignore[arg-type]
    asked = measures("choice", prediction=2)
    line = chosen.line(made, recognise(made.messages), verdict, asked, False, False)
    return (None if line is None else json.loads(line)), dict(chosen.counts)


def test_discard() -> None:
    assert _treated("discard") == (None, {"left out by its class": 1})
    row, counts = _treated("discard", cls="known")
    assert row is not None and row["messages"][1]["content"] == EXPLAINED
    assert row["meta"] == {"id": "0a", "class": "known", "kind": "choice", "score": -0.9}
    assert counts == {"kept": 1} and "weight" not in row


def test_other_classes_may_be_treated() -> None:
    row, _ = _treated("discard", cls="uncertain", treated=["uncertain", "contradicts"])
    assert row is None


@pytest.mark.parametrize(
    ("cls", "weight"),
    [("known", 1.0), ("not_about_knowledge", 1.0), ("uncertain", 0.5), ("contradicts", 0.1)],
)
def test_weight(cls: str, weight: float) -> None:
    row, _ = _treated("weight", cls=cls, weight=2.0)
    assert row is not None and row["weight"] == pytest.approx(2 * weight)


def test_refuse() -> None:
    row, counts = _treated("refuse", refusal="No idea.")
    assert row is not None and row["messages"][1]["content"] == "No idea."
    assert row["messages"][0]["content"] == CHOICE and counts == {"refused": 1}


def test_open_book() -> None:
    row, _ = _treated("open_book")
    assert row is not None
    assert row["messages"][0]["content"] == (
        f"Context: Mercury melts far below zero degrees.\n\n{CHOICE}"
    )
    assert row["messages"][1]["content"] == EXPLAINED
    row, counts = _treated("open_book", "B")
    assert row is None and "no explanation" in next(iter(counts))


@pytest.mark.parametrize(
    ("answer", "own"),
    [("B", "C"), ("(B)", "(C)"), ("B.", "C."), (EXPLAINED, "C. gold"), ("mercury", "gold")],
)
def test_self_distil(answer: str, own: str) -> None:
    row, _ = _treated("self_distil", answer)
    assert row is not None and row["messages"][1]["content"] == own


def test_self_distil_needs_a_complete_answer() -> None:
    found = recognise(conversation("Who?", "Me").messages)
    assert own_response("Me", found, measures("short", response="You")) == "You"
    assert own_response("Me", found, measures("short", response="")) is None
    assert own_response("Me", found, measures("long", response=None)) is None


def test_copies_and_leaks_are_left_out_if_set() -> None:
    made = conversation(CHOICE, "B")
    found, verdict = recognise(made.messages), Classified("known", 0.9, "")
    for is_copy, is_leak in ((True, False), (False, True)):
        arguments = (made, found, verdict, measures("choice"), is_copy, is_leak)
        assert Filter(ScreenConfig()).line(*arguments) is None
        kept = ScreenConfig(remove_duplicates=False, remove_leaks=False)
        assert Filter(kept).line(*arguments) is not None
