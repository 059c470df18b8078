"""Which texts each setting needs."""

from typing import Any

import pytest

from ift_scale.config import Config, ConstructConfig, LearntConfig, WriteConfig, WriterConfig
from ift_scale.write.needs import Need, Requirement, needs, requirements, roles
from tests.write.made import score

SCORES = {
    f"q{n}": score(n) for n in range(4)
}  # right, wrong, uncertain, mistaken without confidence


def _needs(settings: list[str], **parts: Any) -> list[tuple[str, str, int | None, str]]:
    construct = ConstructConfig(
        settings=settings, **({"response": "letter_text_explanation"} | parts)
    )
    return [tuple(need) for need in needs(construct, _required(construct), SCORES)]  # type: ignore[misc]


def _required(construct: ConstructConfig, **sections: Any) -> list[Requirement]:
    return requirements(Config(output_dir="x", construct=construct, **sections))


def _explained(id: str, target: int, author: str) -> tuple[str, str, int, str]:
    return id, "explanation", target, author


Q0, Q1 = _explained("q0", 0, "external"), _explained("q1", 1, "external")
OWN = _explained("q1", 2, "base_model")
REST = [_explained("q2", 2, "external"), _explained("q3", 3, "external")]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("harmonious", [Q0]),
        ("incompatible", [Q1]),
        ("self_aligning", [OWN]),
        ("contextualized", [Q1, ("q1", "context", None, "external")]),
        ("natural", [Q0, Q1, *REST]),
        ("discard_unknown", [Q0]),
        ("refuse_unknown", [Q0]),
        (
            "open_book",
            [Q0, Q1, *REST, *((id, "context", None, "external") for id in ("q1", "q2", "q3"))],
        ),
        ("conflict_weighted", [Q0, Q1, *REST]),
        (
            "self_distilled",
            [(id, kind, target, "base_model") for id, kind, target, _ in (Q0, Q1, *REST)],
        ),
        ("only_wrong", [Q1, REST[1]]),
        ("highly_known", [Q0]),
        ("unknown", [Q1, REST[1]]),
        ("mixture-0.2", [Q1, OWN]),
        ("unknown-0.5", [Q0, Q1, REST[1]]),
    ],
)
def test_each_setting(setting: str, expected: list[Any]) -> None:
    assert sorted(_needs([setting]), key=str) == sorted(expected, key=str)


def test_each_text_once_and_one_author_for_all() -> None:
    paper = ["harmonious", "incompatible", "self_aligning"]
    assert _needs([*paper, "mixture-0.4"]) == [Q0, Q1, OWN]
    assert {need[3] for need in _needs(paper, matching={"author": "base_model"})} == {"base_model"}
    assert _needs(paper, matching={"author": "external"}) == [
        Q0,
        Q1,
        _explained("q1", 2, "external"),
    ]


def test_ratios_and_the_threshold_count() -> None:
    assert _needs(["harmonious"], consistency_ratios=[0.5], confidence_threshold=0.35) == [
        Q0,
        _explained("q2", 2, "external"),
        Q1,
        OWN,
    ]


@pytest.mark.parametrize("response", ["letter", "letter_text"])
def test_without_explanations_only_contexts_are_needed(response: str) -> None:
    assert _needs(["harmonious", "self_aligning"], response=response) == []
    assert _needs(["contextualized"], response=response) == [("q1", "context", None, "external")]


def test_the_authors_sets_bring_their_texts() -> None:
    assert _required(ConstructConfig(response="letter_text_explanation", official="sets")) == []


def test_only_train_questions_of_the_domains_and_kind() -> None:
    others = {
        "a": score(0, "other").model_copy(update={"question_id": "a"}),
        "b": score(0).model_copy(update={"question_id": "b", "split": "test"}),
        "c": score(0).model_copy(update={"question_id": "c", "collection": "benchmark"}),
        "e": score(0, kind="free").model_copy(update={"question_id": "e"}),
    }
    construct = ConstructConfig(
        settings=["natural"], response="letter_text_explanation", domains=["d"]
    )
    assert {
        need.question_id for need in needs(construct, _required(construct), SCORES | others)
    } == set(SCORES)
    free = ConstructConfig(settings=["contextualized", "open_book"], questions="free")
    asked = {
        "f": score(1, kind="free").model_copy(
            update={"question_id": "f", "answer": None, "prediction": None}
        )
    }
    assert needs(free, _required(free), SCORES | asked) == [Need("f", "context", None, "external")]


def test_roles() -> None:
    construct = ConstructConfig(settings=["contextualized"], response="letter_text_explanation")
    assert roles(_required(construct)) == {"external", "contexts"}
    assert roles(
        _required(ConstructConfig(settings=["self_aligning"], response="letter_text_explanation"))
    ) == {"own"}


def test_paraphrases_are_needed_for_the_questions_that_are_asked_again() -> None:
    construct = ConstructConfig(settings=["incompatible", "contextualized", "format_only"])
    write = WriteConfig(paraphrases=WriterConfig(kind="base_model"))
    context = ("q1", "context", None, "external")
    assert needs(construct, _required(construct, write=write), SCORES) == [context]
    asked = LearntConfig(on=True)
    assert needs(construct, _required(construct, learnt=asked), SCORES) == [context]
    required = _required(construct, write=write, learnt=asked)
    needed = needs(construct, required, SCORES)
    assert set(needed) == {context, ("q1", "paraphrase", None, "external")} and len(needed) == 2
    assert roles(required) == {"contexts", "paraphrases"}
