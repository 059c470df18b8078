"""Training items read back from instruction sets: order, context, target, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from ift_scale.construct.even_letters import swapped
from ift_scale.errors import DataError
from ift_scale.learnt.items import (
    ItemText,
    Presentation,
    TrainedItem,
    as_shown,
    presentations,
    read_texts,
)
from ift_scale.prompts.templates import chat_messages, without_options
from ift_scale.records import LETTERS, Question

QUESTION = Question(
    id="q1", domain="d", subject="d", collection="pool", split="train", question="Which metal?",
    choices=["tin", "zinc", "lead", "tin can"], answer=1,
)  # fmt: skip


def _row(id: str | None, letter: str | None, content: str = "Which?") -> dict[str, Any]:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]
    return {"messages": messages, "meta": {"question_id": id, "target": letter}}


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("context", [None, "Zinc is a metal.\nA. tin"])
@pytest.mark.parametrize("target", range(4))
@pytest.mark.parametrize("letter", range(4))
def test_every_order_that_a_set_may_show_is_recovered(
    context: str | None, target: int, letter: int
) -> None:
    order = swapped(4, target, letter)
    (message,) = chat_messages(QUESTION, order, context)
    item = as_shown(Path("x"), ItemText(1, message.content, LETTERS[letter]), QUESTION, False)
    assert item.shown.order == tuple(order) and item.target == target
    assert item.shown.context == (f"Context: {context}\n" if context else "")


@pytest.mark.parametrize("context", [None, "Zinc is a metal.\nA. tin"])
def test_an_item_without_options_has_the_pools_order(context: str | None) -> None:
    (message,) = chat_messages(without_options(QUESTION), context=context)
    item = as_shown(Path("x"), ItemText(1, message.content, "C"), QUESTION, True)
    assert item.shown.order == (0, 1, 2, 3) and item.target == 2
    assert item.shown.context == (f"Context: {context}\n" if context else "")


@pytest.mark.parametrize("by_text", [True, False])
def test_another_text_than_the_pools_is_refused_with_its_line(by_text: bool) -> None:
    shown = QUESTION if by_text else without_options(QUESTION)
    (of_the_other_kind,) = chat_messages(shown)
    for prompt in ("Which wood?\nA. oak\nAnswer:", of_the_other_kind.content):
        text = ItemText(7, prompt, "A")
        with pytest.raises(DataError, match=r"a\.jsonl:7.*pool's question q1.*construct"):
            as_shown(Path("a.jsonl"), text, QUESTION, by_text)


def test_refusals_and_general_instructions_are_left_out(tmp_path: Path) -> None:
    rows = [_row("a", "A"), _row(None, None), _row("b", None), _row("c", "D")]
    path = _write(tmp_path / "set.jsonl", rows)
    found = read_texts(path, 10, 0)
    assert {id: text.letter for id, text in found.items()} == {"a": "A", "c": "D"}
    assert found["c"].line == 4
    only = _write(tmp_path / "only.jsonl", rows[1:3])
    with pytest.raises(DataError, match=r"only\.jsonl: the set teaches no option"):
        read_texts(only, 10, 0)


def test_a_large_set_is_sampled_by_identity(tmp_path: Path) -> None:
    rows = [_row(f"q{n}", "A") for n in range(50)]
    found = read_texts(_write(tmp_path / "a.jsonl", rows), 20, 1)
    again = read_texts(_write(tmp_path / "b.jsonl", rows[::-1]), 20, 1)
    assert len(found) == 20 and found.keys() == again.keys()
    assert found.keys() != read_texts(tmp_path / "a.jsonl", 20, 2).keys()


def test_the_base_model_is_asked_each_presentation_once() -> None:
    own, moved = Presentation((0, 1), ""), Presentation((1, 0), "")
    sets = {
        "H": {"a": TrainedItem(own, 0), "b": TrainedItem(own, 0)},
        "I": {"a": TrainedItem(own, 1), "b": TrainedItem(moved, 0)},
    }
    assert presentations(sets) == {"a": [own], "b": [own, moved]}
