"""The file of general instructions as people have it, and what is refused."""

import json
from pathlib import Path

import pytest

from ift_scale.construct import general
from ift_scale.errors import DataError

ROW = {"instruction": "Add.", "input": "1 and 2", "output": "3"}


def _written(path: Path, **changes: object) -> Path:
    rows = [ROW, {key: value for key, value in (ROW | changes).items() if value is not ...}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "text", [json.dumps([ROW, ROW], indent=4), f"\ufeff{json.dumps(ROW)}\r\n{json.dumps(ROW)}\r\n"]
)
def test_a_list_as_alpaca_has_it_and_a_byte_order_mark(text: str, tmp_path: Path) -> None:
    (tmp_path / "general.json").write_text(text, encoding="utf-8", newline="")
    examples = general.load(tmp_path / "general.json")
    assert [[message.content for message in example.messages] for example in examples.values()] == [
        ["Add.\n\n1 and 2", "3"]
    ] * 2


@pytest.mark.parametrize("empty", ["", None, ...])
def test_input_may_be_left_out(empty: object, tmp_path: Path) -> None:
    examples = general.load(_written(tmp_path / "general.jsonl", input=empty))
    assert list(examples.values())[1].messages[0].content == "Add."


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"input": float("nan")}, r"field 'input': missing, empty or not a text \(value: nan\)"),
        ({"input": ["a"]}, r"field 'input': .*\(value: \['a'\]\)"),
        ({"input": 0}, r"field 'input': .*\(value: 0\)"),
        ({"input": {"text": "a"}}, r"field 'input'"),
        ({"instruction": 7}, r"field 'instruction': .*\(value: 7\)"),
        ({"instruction": " "}, r"field 'instruction'"),
        ({"output": None}, r"field 'output': missing"),
        ({"output": ...}, r"field 'output': missing"),
        ({"output": float("nan")}, r"field 'output': .*\(value: nan\)"),
        ({"output": "x \ud800"}, r"field 'output': holds half of a surrogate pair"),
        ({"input": "\udc00"}, r"field 'input': holds half of a surrogate pair"),
    ],
)
def test_rows_that_are_refused(changes: dict[str, object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"general.jsonl:2: {problem}") as caught:
        general.load(_written(tmp_path / "general.jsonl", **changes))
    assert caught.value.exit_code == 2


def test_the_real_file(shared_data: Path) -> None:
    assert len(general.load(shared_data / "general" / "alpaca_en_demo.jsonl.gz")) == 999
