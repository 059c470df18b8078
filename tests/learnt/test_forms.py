"""The forms of an item: what changes, what stays, and the user's paraphrases."""

from pathlib import Path

import pytest

from ift_scale.config.file import from_dict
from ift_scale.config.learnt import LearntConfig
from ift_scale.errors import ConfigError, DataError
from ift_scale.learnt.forms import AskedForm, check_used, forms_of, read_paraphrases, restated
from ift_scale.learnt.items import Presentation
from ift_scale.prompts.templates import chat_messages, without_options
from ift_scale.questions import world
from ift_scale.records import Question

QUESTION = Question(
    id="q1", domain="d", subject="d", collection="pool", split="train", question="Which metal?",
    choices=["tin", "zinc", "lead", "gold"], answer=1, explanation="The metal of Q is zinc.",
)  # fmt: skip
ORDER = (0, 3, 2, 1)


def _forms(
    shown: Presentation, written: tuple[str, ...] = (), orders: int = 1, by_text: bool = False
) -> list[AskedForm]:
    return list(forms_of(QUESTION, shown, LearntConfig(orders=orders), written, by_text))


def _prompt(form: AskedForm) -> str:
    by_text = form.measured == "texts"
    (message,) = chat_messages(without_options(form.asked) if by_text else form.asked)
    return message.content


def test_as_trained_is_the_prompt_of_the_set() -> None:
    for context in (None, "Zinc is a metal."):
        (trained,) = chat_messages(QUESTION, ORDER, context)
        before = f"Context: {context}\n" if context else ""
        first = _forms(Presentation(ORDER, before))[0]
        assert first.form == "as trained" and _prompt(first) == trained.content


def test_one_thing_differs_in_each_form() -> None:
    forms = {f.form: f for f in _forms(Presentation(ORDER, "Context: x\n"), ("Name it.",))}
    assert list(forms) == ["as trained", "without context", "other order", "paraphrase", "free"]
    assert _prompt(forms["without context"]) == _prompt(forms["as trained"])[len("Context: x\n") :]
    assert _prompt(forms["free"]) == "Context: x\nWhich metal?\nAnswer:"
    others = _forms(Presentation(ORDER, ""), ("Name it.", "Name it."))
    paraphrases = [f for f in others if f.form == "paraphrase"]
    questions = [f.asked.question for f in paraphrases]
    assert questions == ["Name it.", "The metal of Q is what?"]
    assert [f.number for f in paraphrases] == [0, 1] and paraphrases[0].order == ORDER
    assert "without context" not in {f.form for f in others}


def test_sets_without_options_have_their_own_forms() -> None:
    own = (0, 1, 2, 3)
    forms = {f.form: f for f in _forms(Presentation(own, "Context: x\n"), ("Name it.",), 3, True)}
    assert list(forms) == ["as trained", "without context", "with options", "paraphrase", "free"]
    (trained,) = chat_messages(without_options(QUESTION), context="x")
    assert _prompt(forms["as trained"]) == _prompt(forms["free"]) == trained.content
    assert _prompt(forms["without context"]) == "Which metal?\nAnswer:"
    (shown,) = chat_messages(QUESTION, context="x")
    assert _prompt(forms["with options"]) == shown.content
    measured = [form.measured for form in forms.values()]
    assert measured == ["texts", "texts", "letters", "texts", "words"]
    for name in ("as trained", "with options", "paraphrase"):
        assert forms[name].order == own and forms[name].asked.choices == QUESTION.choices


def test_in_other_orders_every_option_has_another_letter() -> None:
    for orders, number in ((0, 0), (1, 1), (3, 3), (9, 3)):
        found = [f for f in _forms(Presentation(ORDER, ""), (), orders) if f.form == "other order"]
        assert len({f.order for f in found}) == len(found) == number
        for form in found:
            assert all(a != b for a, b in zip(form.order, ORDER, strict=True))
            answer = form.asked.answer
            assert answer is not None and form.asked.choices[answer] == "zinc"


@pytest.mark.parametrize(
    "explanation",
    ["Zinc is the metal.", "It is zinc. The metal is zinc.", "A metal. It is zinc.", "zinc", None,
     "The metal is prezinc."],
)  # fmt: skip
def test_other_explanations_give_no_paraphrase(explanation: str | None) -> None:
    assert restated(QUESTION.model_copy(update={"explanation": explanation})) == []


def test_every_question_of_the_world_has_two_paraphrases_without_its_answer() -> None:
    pool = [q for q in world.load() if q.split == "train"]
    for question in pool:
        found = list(dict.fromkeys(restated(question)))
        assert len(found) == 2 and question.answer is not None
        assert not any(question.choices[question.answer] in text for text in found)
        assert not any(question.question == text for text in found)


def test_paraphrases_are_read_and_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question_id": "a", "question": "B?"}\n{"question_id": "a", "question": ""}')
    with pytest.raises(DataError, match=r"p\.jsonl:2: field 'question': must be a text"):
        read_paraphrases(path)
    path.write_text('{"question_id": "a", "question": "B?"}\n{"question_id": "a", "question": "C"}')
    assert read_paraphrases(path) == {"a": ["B?", "C"]}
    check_used(path, {"a": ["B?"]}, {"a", "b"})
    with pytest.raises(DataError, match=r"none of its 1 question ids .* such as b .*value: 'a'"):
        check_used(path, {"a": ["B?"]}, {"b", "c"})


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        ({"response": "text"}, "response: text show no letters.*decide_by: plain; set that to"),
        ({"questions": "free", "response": "text"}, "questions: free teach no option"),
        ({"official": "x"}, "released sets .construct.official. are not in the pools"),
        ({"settings": []}, "learnt.on: no set teaches questions of the pools"),
        ({"settings": ["format_only"]}, "learnt.on: no set teaches questions of the pools"),
    ],
)
def test_sets_that_cannot_be_asked_again_are_refused(
    construct: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(_settings(construct, {"cloze": "pmi"}))


def test_sets_without_options_are_asked_by_the_measure_of_evaluation() -> None:
    reliability = {"cloze": "pmi", "decide_by": "cloze"}
    config = from_dict(_settings({"response": "text"}, reliability))
    assert config.learnt.on and config.probe.of_arms.cloze == "pmi"


def _settings(construct: dict[str, object], reliability: dict[str, object]) -> dict[str, object]:
    return {
        "output_dir": "x",
        "questions": {"sources": [{"kind": "world"}]},
        "probe": {"reliability": reliability, "free": {"ask": True}},
        "construct": construct,
        "learnt": {"on": True},
    }
