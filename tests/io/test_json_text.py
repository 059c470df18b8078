"""JSON that Python's reader takes, and that is refused with words."""

from pathlib import Path

import pytest

from ift_scale.errors import DataError
from ift_scale.io import json_text, text_file


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ("[" * 101 + "]" * 101, "too deeply nested: more than 100 levels"),
        ("[" * 100_000, "too deeply nested"),
        ("9" * 5000, "an integer of 5000 digits"),
        ('{"a": 1} x', "unexpected text after the value"),
        ("", r"Expecting value \(column 1\)"),
    ],
)
def test_refused(text: str, problem: str) -> None:
    with pytest.raises(json_text.InvalidJson, match=problem):
        json_text.decode(text)


def test_nesting_up_to_the_limit_is_read() -> None:
    assert json_text.decode("[" * 100 + "]" * 100)
    assert json_text.decode('{"a": "' + "[" * 500 + '"}') == {"a": "[" * 500}


def test_an_error_has_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": {\n"b": 1,\n"b": 2}}')
    with pytest.raises(DataError, match="field 'b': duplicate key in the object"):
        text_file.read_object(path, "Fetch it again")
    path.write_text('{"a":\n ?}')
    with pytest.raises(DataError, match=r"a.json:2: not valid JSON: .* Fetch it again"):
        text_file.read_object(path, "Fetch it again")
    path.write_text('{"a": ["\\ud800"]}')
    with pytest.raises(DataError, match=r"field 'a\[0\]': contains half of a surrogate pair"):
        text_file.read_object(path, "Fetch it again")
