"""Users' text and JSON files: byte order marks, encodings, line endings, damage."""

import codecs
import gzip
import json
from pathlib import Path

import pytest

from ift_scale.errors import DataError
from ift_scale.io import jsonl, text_file

ROWS = [{"q": "Wer? 犬 😀", "n": 1}, {"q": "b"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        LINES.encode("utf-8-sig"),
        LINES.replace("\n", "\r\n").encode(),
        LINES.replace("\n", "\r").encode(),
        LINES.encode("utf-16"),
        codecs.BOM_UTF16_BE + LINES.encode("utf-16-be"),
        LINES.encode("utf-32"),
        "".join(
            "\ufeff" + line + "\n" for line in LINES.splitlines()
        ).encode(),  # files joined with cat
        LINES.rstrip("\n").encode(),
        json.dumps(ROWS).encode(),
        json.dumps(ROWS, indent=2).encode("utf-8-sig"),
        b"\n \n" + json.dumps(ROWS, indent=2).replace("\n", "\r\n").encode() + b"\n\n",
    ],
)
def test_every_form_gives_the_same_rows(content: bytes, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / ("a.json.gz" if packed else "a.json")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert [row for _, row in jsonl.rows(path)] == ROWS
    assert jsonl.count(path) == 2


def test_a_gzipped_file_is_recognised_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(LINES.encode()))
    assert [row for _, row in jsonl.rows(tmp_path / "a.jsonl")] == ROWS


def test_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [line for line, _ in jsonl.rows(path)] == [2, 4]
    path.write_text('\n[\n {"a":\n 1},\n\n {"a": 2}, {"a": 3}\n]\n')
    assert list(jsonl.rows(path)) == [(3, {"a": 1}), (6, {"a": 2}), (6, {"a": 3})]
    for empty in ("", "\n", "[]", " [\n]\n"):
        path.write_text(empty)
        assert list(jsonl.rows(path)) == [] and jsonl.count(path) == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            b'{"a": 1}\n{"a": \n',
            r":2: not valid JSON: Expecting value \(column 6\) \(value: '{\"a\":'\)",
        ),
        (b'{"a": 1}\n7\n', r":2: not a JSON object \(value: 7\)"),
        (b'[\n {"a": 1},\n [2]\n]', r":3: not a JSON object \(value: \[2\]\)"),
        (b'[\n {"a": 1}\n {"a": 2}\n]', r":3: not valid JSON: expected ',' or '\]'"),
        (b'[\n {"a": 1},\n {"a": }\n]', r":3: not valid JSON: Expecting value"),
        (b'[{"a": 1},]', r":1: not valid JSON"),
        (b'[{"a": 1}', r":1: not valid JSON"),
        (b'[{"a": 1}]\n{"a": 2}\n', r":1: not valid JSON: unexpected text after the list"),
        (b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', r":2: field 'a': duplicate key in the object"),
        (b'{"a": {"b": 1, "b": 1}}\n', r":1: field 'b': duplicate key in the object"),
        (
            b'{"a": 1}\n{"a": "x \\ud800"}\n',
            r":2: field 'a': holds half of a surrogate pair.*ud800",
        ),
        (
            b'{"a": [{"b": ["c", "\\uDFFF"]}]}\n',
            r":1: field 'a\[0\].b\[1\]': holds half of a surrogate pair",
        ),
        (b'{"a\\ud800": 1}\n', r":1: field ''a.ud800'': holds half of a surrogate pair"),
        (b'{"a": 1' + b"0" * 5000 + b"}\n", r":1: not valid JSON: an integer of 5001 digits"),
        (b'{"a": ' + b"[" * 200_000 + b"\n", r":1: not valid JSON: too deeply nested"),
        (
            b'{"a": "ok"}\n{"a": "\xb9\xfa"}\n',
            r":2: is damaged or not UTF-8: invalid start byte. Save it as UTF-8",
        ),
        (b'{"a": "ok"}\n{"a": "\xed\xa0\x80"}\n', r":2: is damaged or not UTF-8"),
        (LINES.encode("utf-16-le"), r": is binary, or UTF-16 without a byte order mark"),
        (LINES.encode("utf-16")[:-1], r": is damaged or not UTF-16-LE: truncated data"),
        (b"PK\x03\x04rest", r": is a zip archive .*Unpack it"),
        (b"\x28\xb5\x2f\xfdrest", r": is compressed with zstd"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            r": is a Git LFS pointer.*git lfs pull",
        ),
        (gzip.compress(LINES.encode(), mtime=0)[:-9], r": is damaged: Compressed file ended"),
        # Not UTF-8 and cut: the end is found when the line of the first fault is looked for.
        (gzip.compress(b"\xb9" + b"x" * 100_000)[:-9], r": is damaged: Compressed file ended"),
    ],
)
def test_invalid_files_are_refused(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="a.jsonl" + problem) as caught:
        list(jsonl.rows(tmp_path / "a.jsonl"))
    assert caught.value.exit_code == 2


def test_surrogate_pairs_and_escapes_are_characters(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "\\ud83d\\ude00 \\u72ac \\\\ud800"}\n')
    assert [row for _, row in jsonl.rows(tmp_path / "a.jsonl")] == [{"a": "😀 犬 \\ud800"}]


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.txt: no such file"):
        list(text_file.lines(tmp_path / "absent.txt"))
    with pytest.raises(DataError, match=r"is a folder, not a file"):
        list(text_file.lines(tmp_path))
