"""YAML: numbers as they are written, merge keys, and limits."""

from pathlib import Path
from typing import Any

import pytest

from ift_scale.errors import ConfigError
from ift_scale.io import yaml_text

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{right}: &{right} [{', '.join([f'*{left}'] * 10)}]\n"
    for left, right in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("010", "010"),
        ("2e-5", 2e-5),
        ("1_000", 1000),
        ("0x10", 16),
        (".5", 0.5),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("yes", True),
        ("~", None),
        ("{on: no, true: 1}", {"on": False, "true": 1}),
        ("{a: &x {b: 1, c: 2}, d: {<<: *x, b: 3}}", {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = yaml_text.parse(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "duplicate key 'a' .*line 1"),
        ("{1: a, 0x1: b}", "duplicate key 1"),
        ("{on: 1, on: 2}", "duplicate key 'on'"),
        (BOMB, "aliases stand for more than 100,000 values"),
        ("a: &a [*a]", "an alias refers to the value that contains it"),
        ("[" * 3000, "too deeply nested"),
        ("9" * 5000, "an integer of 5000 digits"),
        ("[1]: 2", "a key must be a name"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('"\\0"', "the character NUL"),
        ("!!int x", "does not fit its tag"),
        ("!!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_refused(text: str, problem: str) -> None:
    with pytest.raises(yaml_text.InvalidYaml, match=problem):
        yaml_text.parse(text)


def test_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for content, problem in ((b"[1]", "must be a mapping"), (b"a: \xe9", "line 1: is damaged")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=problem):
            yaml_text.read_mapping(path)
    with pytest.raises(ConfigError, match="is a folder, not a file"):
        yaml_text.read_mapping(tmp_path)
