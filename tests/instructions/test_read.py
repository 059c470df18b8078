"""Instruction files of every format: read, told apart, and what is refused or left out."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ift_scale.config.instructions import InstructionSource
from ift_scale.errors import DataError
from ift_scale.instructions.conversation import Conversation
from ift_scale.instructions.read import Skipped, read

Row = dict[str, Any]


def _turns(*texts: str, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    names = ("user", "assistant") if role == "role" else ("human", "gpt")
    return [{role: names[i % 2], content: text} for i, text in enumerate(texts)]


def _all(path: Path, **settings: Any) -> tuple[list[Conversation], Skipped]:
    report = Skipped()
    return list(read(InstructionSource(path=str(path), **settings), report)), report


def _texts(conversations: list[Conversation]) -> list[list[str]]:
    return [[f"{m.role[0]}: {m.content}" for m in c.messages] for c in conversations]


def _jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SYSTEM = [{"role": "system", "content": "Be brief."}]
FORMATS: list[tuple[str, Row, list[str]]] = [
    ("messages", {"messages": _turns("Hi", "Hello")}, ["u: Hi", "a: Hello"]),
    (
        "messages",
        {"messages": [*SYSTEM, *_turns("1", "2", "3", "4")], "id": 7},
        ["s: Be brief.", "u: 1", "a: 2", "u: 3", "a: 4"],
    ),
    (
        "messages",  # as OpenAI's fine-tuning has it, with developer and parts
        {
            "messages": [
                {"role": "developer", "content": "D"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
                {"role": "assistant", "content": "c", "weight": 1, "name": "x"},
            ],
            "tools": [],
        },
        ["s: D", "u: ab", "a: c"],
    ),
    (
        "sharegpt",
        {"conversations": _turns("Hi", "Ho", role="from", content="value"), "system": "S"},
        ["s: S", "u: Hi", "a: Ho"],
    ),
    ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}, ["u: Add.\n\n1 2", "a: 3"]),
    (
        "alpaca",
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]], "input": None},
        ["s: s", "u: a", "a: b", "u: c", "a: d"],
    ),
    ("alpaca", {"instruction": "Q", "context": "C", "response": "R"}, ["u: Q\n\nC", "a: R"]),
    ("completion", {"prompt": "p", "completion": " c"}, ["u: p", "a:  c"]),
    (
        "completion",
        {"prompt": [*SYSTEM, *_turns("p")], "completion": [{"role": "assistant", "content": "c"}]},
        ["s: Be brief.", "u: p", "a: c"],
    ),
]


@pytest.mark.parametrize(("format", "row", "expected"), FORMATS)
def test_every_format_is_detected_and_read(
    format: str, row: Row, expected: list[str], tmp_path: Path
) -> None:
    read_rows, report = _all(_jsonl(tmp_path / "own.jsonl", row, row))
    assert _texts(read_rows) == [expected, expected]
    assert (report.format, report.num_read, report.reasons) == (format, 2, {})
    assert read_rows[1].id == f"{read_rows[0].id}-2" and read_rows[1].place.line == 2


@pytest.mark.parametrize("format", ["auto", "messages", "sharegpt", "alpaca", "completion"])
def test_a_given_format_reads_its_rows_only(format: str, tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "own.jsonl", FORMATS[0][1])
    if format in ("auto", "messages"):
        assert len(_all(path, format=format)[0]) == 1
    else:
        with pytest.raises(DataError, match=f"its format is messages, but the file's is {format}"):
            _all(path, format=format)


def _stored(folder: Path, kind: str, rows: list[Row]) -> tuple[Path, dict[str, str]]:
    import datasets
    import pandas as pd

    path = folder / f"own.{kind}"
    match kind:
        case "jsonl.gz":
            text = "".join(json.dumps(row) + "\n" for row in rows)
            path.write_bytes(gzip.compress(text.encode()))
        case "json":
            path.write_text(json.dumps(rows))
        case "json.gz":
            path.write_bytes(gzip.compress(json.dumps(rows, indent=1).encode()))
        case "csv":
            as_text = [
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                for row in rows
            ]
            pd.DataFrame(as_text).to_csv(path, index=False)
        case "parquet":
            datasets.Dataset.from_list(rows).to_parquet(path)
        case "saved":
            splits = {"train": datasets.Dataset.from_list(rows)}
            datasets.DatasetDict(splits).save_to_disk(path)
        case "folder":
            path.mkdir()
            _jsonl(path / "train-00000-of-00002.jsonl", *rows[:1])
            _jsonl(path / "train-00001-of-00002.jsonl", *rows[1:])
            _jsonl(path / "test.jsonl", rows[0])
            return path, {}
        case "slice":
            path = _jsonl(folder / "own.jsonl", rows[0], *rows, rows[0])
            return path, {"split": f"train[1:{len(rows) + 1}]"}
    return path, {}


@pytest.mark.parametrize(
    "kind", ["jsonl.gz", "json", "json.gz", "csv", "parquet", "saved", "folder", "slice"]
)
@pytest.mark.parametrize("format", ["messages", "sharegpt", "alpaca", "completion"])
def test_every_kind_of_file(kind: str, format: str, tmp_path: Path) -> None:
    (row, expected), *_ = [(row, texts) for name, row, texts in FORMATS if name == format]
    rows = [row, json.loads(json.dumps(row).replace("H", "X")), row]
    path, settings = _stored(tmp_path, kind, rows)
    examples, _ = _all(path, **settings)
    assert _texts(examples)[0] == _texts(examples)[2] == expected and len(examples) == 3


def _with(index: int, **changes: Any) -> Row:
    turns: list[Any] = _turns("a", "b", "c", "d")
    turns[index] = turns[index] | changes
    return {"messages": turns}


BAD: list[tuple[Any, str]] = [
    ({"messages": []}, "field 'messages': missing, empty or not a list"),
    ({"messages": "x"}, "field 'messages': missing, empty or not a list"),
    ({"messages": ["x"]}, r"field 'messages\[0\]': not an object \(value: 'x'\)"),
    (_with(2, content=" "), r"field 'messages\[2\].content': missing, empty or not a text"),
    (_with(2, content=None), r"field 'messages\[2\].content': missing, empty or not a text"),
    (_with(1, content="\ud800"), r"field 'messages\[1\].content': holds half of a surrogate"),
    (_with(1, role="user"), r"field 'messages\[1\].content': roles are out of order, the assis"),
    (_with(0, role="assistant"), r"field 'messages\[0\].content': roles are out of order, the u"),
    (_with(1, role="system"), r"field 'messages\[1\].content': roles are out of order"),
    (_with(1, role="asistant"), r"'messages\[1\].role': an unknown role .*mean 'assistant'"),
    (_with(1, role=3), r"field 'messages\[1\].role': an unknown role \(value: 3\)"),
    (_with(3, weight=0), r"field 'messages\[3\].weight': excludes a turn from training"),
    (_with(2, role="tool"), r"field 'messages\[2\]': a tool turn .*Set tools: text"),
    (_with(1, tool_calls=[{"function": {"name": "f"}}]), r"'messages\[1\]': a tool turn"),
    (
        _with(0, content=[{"type": "image_url", "image_url": {}}]),
        r"field 'messages\[0\].content\[0\]': a content part that is not text .*'image_url'",
    ),
    ({"messages": _turns("a", "b", "c")}, r"'messages\[2\].content': no answer to learn from"),
    ({"messages": _turns("a", "b"), "tools": [{"name": "f"}]}, "field 'tools': declares tools"),
    ({"messages": [*SYSTEM, *_turns("a", "b")], "system": "x"}, "'system': there is a system mess"),
    ({"messages": _turns("a", "b"), "weight": -1}, "field 'weight': is not a weight in the loss"),
    ({"messages": _turns("a", "b"), "weight": True}, "field 'weight': is not a weight in the"),
    ({"instruction": "a", "output": "b"}, "its format is alpaca, but the file's is messages"),
    ({"text": "a"}, r"field 'messages': missing, empty or not a list"),
    ({"messages": None, "text": "a"}, r"field 'messages': missing, empty or not a list"),
]


@pytest.mark.parametrize(("row", "problem"), BAD)
def test_a_bad_row_is_an_error_or_left_out_and_counted(
    row: Any, problem: str, tmp_path: Path
) -> None:
    good: Row = {"messages": _turns("Hi", "Hello")}
    path = _jsonl(tmp_path / "own.jsonl", good, row, good)
    with pytest.raises(DataError, match=rf"own.jsonl:2: .*{problem}") as caught:
        _all(path)
    assert caught.value.exit_code == 2
    examples, report = _all(path, on_error="skip")
    assert len(examples) == report.num_read == 2 and report.reasons.total() == 1
    assert "1 left out: 1 " in report.summary(str(path)) and ":2" in report.summary(str(path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{broken\n", "not valid JSON"),
        ('[{"prompt"\n', "not valid JSON"),
        ("7\n", "not a JSON object"),
        ('{"question": "q", "answer": "a"}\n', "has no known format .*Rename its columns"),
        ('{"prompt": "p", "completion": "c", "messages": []}\n', "the columns of several formats"),
        ("", "has no example that can be used"),
        ('{"instruction": "a", "output": null}\n', "field 'output': missing, empty"),
        ('{"instruction": "a", "history": ["x"], "output": "b"}\n', r"'history\[0\]': not a pair"),
    ],
)
def test_a_bad_first_row(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=problem):
        _all(path)
    with pytest.raises(DataError):  # nothing is left
        _all(path, on_error="skip")


def test_the_rows_of_a_list_on_one_line_have_an_index(tmp_path: Path) -> None:
    rows = [{"messages": _turns("a", str(i) if i != 700 else "")} for i in range(1000)]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"own.json:1: field '\[700\].messages\[1\].content'"):
        _all(tmp_path / "own.json")
    examples, report = _all(tmp_path / "own.json", on_error="skip")
    assert len(examples) == 999
    assert "1 missing, empty or not a text (first: " in report.summary("own.json")
    assert "'[700].messages[1].content')" in report.summary("own.json")


def test_lines_that_are_not_json_and_rows_of_a_csv_are_left_out(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "p", "completion": "c"})
    (tmp_path / "own.jsonl").write_text(f"{good}\n{{cut\n{good}\n{good[:-3]}")
    examples, report = _all(tmp_path / "own.jsonl", on_error="skip")
    assert len(examples) == 2 and report.reasons == {"not valid JSON": 2}
    (tmp_path / "own.csv").write_text("prompt,completion,weight\np,c,0.5\np,c\np,c,\n")
    examples, report = _all(tmp_path / "own.csv", on_error="skip")
    assert [example.weight for example in examples] == [0.5, 1.0]
    assert report.reasons.total() == 1


def test_columns_that_are_not_used_are_listed(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "logp": 1}]
    path = _jsonl(tmp_path / "own.jsonl", {"messages": turns, "source": "web", "empty": None})
    assert _all(path)[1].summary("F") == (
        "F: format messages, 1 examples; columns not used: messages[].logp, source"
    )


def test_tool_turns_as_text(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": "{}"}, "id": "1", "type": "function"}
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "content": "1", "tool_call_id": "1"},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": [{"name": "f"}],
    }
    (texts,) = _texts(_all(_jsonl(tmp_path / "own.jsonl", row), tools="text")[0])
    shown = '<tool_call>\n{"name": "f", "arguments": "{}"}\n</tool_call>'
    assert texts == [
        's: You can call these tools:\n[{"name": "f"}]',
        "u: q",
        f"a: {shown}\n{shown}",
        "u: <tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>",
        "a: a",
    ]
    share = [("human", "q"), ("function_call", "{}"), ("observation", "1"), ("gpt", "a")]
    row = {"conversations": [{"from": name, "value": value} for name, value in share]}
    (texts,) = _texts(_all(_jsonl(tmp_path / "share.jsonl", row), tools="text")[0])
    assert texts[1] == "a: <tool_call>\n{}\n</tool_call>" and len(texts) == 4


def test_a_path_or_split_that_does_not_exist(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "own.jsonl", {"prompt": "p", "completion": "c"})
    with pytest.raises(DataError, match=r"no split 'tran'\. Set split: did you mean 'train'"):
        _all(path, split="tran")
    with pytest.raises(DataError, match="no split 'tran'"):
        _all(path, split="tran[:1]")
    (tmp_path / "own.txt").write_text("x")
    with pytest.raises(DataError, match="has an unknown type"):
        _all(tmp_path / "own.txt")
