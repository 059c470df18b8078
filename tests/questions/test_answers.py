"""The option that an answer names: letters, numbers from 0 or 1, texts, and class names."""

import json
from pathlib import Path
from typing import Any

import pytest

from ift_scale.config.file import from_dict
from ift_scale.errors import DataError, Place
from ift_scale.questions import answers
from ift_scale.questions.sources import load_source
from ift_scale.records import Question

PLACE = Place("pool.csv", 7, "key")
TEXTS = ["one", "two", "three", "four"]
NUMBERS = ["4", "3", "2", "1"]
LETTER_TEXTS = ["B", "A", "O", "AB"]


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        *[
            (value, form, 2)
            for value in ("C", "c", " C ", "(C)", "(c)", "C.", "C)", "C:", "Ｃ", "（C）")
            for form in ("letter", "auto")
        ],
        *[
            (value, form, 2)
            for value in (2, "2", " 2 ", "(2)", "2.")
            for form in ("index_from_0", "auto", "position")
        ],
        *[(value, "index_from_1", 2) for value in (3, "3", "(3)", "3)")],
        (0, "auto", 0),
        (4, "index_from_1", 3),
        *[(value, form, 2) for value in ("three", " three\n") for form in ("text", "auto")],
        ("A", "position", 0),
    ],
)
def test_values_that_name_an_option(value: object, form: Any, expected: int) -> None:
    assert answers.option_index(PLACE, value, TEXTS, form) == expected


@pytest.mark.parametrize(
    ("value", "choices", "form", "expected"),
    [
        ("A", LETTER_TEXTS, "letter", 0),
        ("A", LETTER_TEXTS, "text", 1),
        ("A", LETTER_TEXTS, "position", 0),
        ("AB", LETTER_TEXTS, "auto", 3),
        ("1", NUMBERS, "index_from_0", 1),
        ("1", NUMBERS, "index_from_1", 0),
        ("1", NUMBERS, "text", 3),
        ("4", NUMBERS, "auto", 0),  # no index from 0 among four options
        ("B", ["x", "B", "y"], "auto", 1),  # letter and text agree
        ("a", ["A", "B"], "auto", 0),
        (1, NUMBERS, "auto", 1),  # a number that is no text is an index
    ],
)
def test_options_that_look_like_answers(
    value: object, choices: list[str], form: Any, expected: int
) -> None:
    assert answers.option_index(PLACE, value, choices, form) == expected


@pytest.mark.parametrize(
    ("value", "choices", "form", "problem"),
    [
        (
            "A",
            LETTER_TEXTS,
            "auto",
            r"may mean option A \(letter\) or B \(its text\) \(value: 'A'\). Set"
            r" fields.answer_form",
        ),
        (
            "1",
            NUMBERS,
            "auto",
            r"may mean option B \(index from 0\) or D \(its text\) \(value: '1'\)",
        ),
        ("a", ["a", "b", "a"], "text", r"equals options A and C \(value: 'a'\)"),
        (
            "E",
            TEXTS,
            "auto",
            r"is neither an option's index nor its letter nor its text \(value: 'E'\). Use"
            r" an index from 0 to 3",
        ),
        ("E", TEXTS, "letter", r"is not a letter from A to D \(value: 'E'\)"),
        ("(A", TEXTS, "auto", r"is neither .*\(value: '\(A'\)"),
        ("AB", TEXTS, "letter", r"is not a letter from A to D"),
        (0, TEXTS, "letter", r"is not a letter from A to D \(value: 0\)"),
        ("A", TEXTS, "index_from_0", r"is not an index from 0 to 3 \(value: 'A'\)"),
        ("five", TEXTS, "text", r"is not the text of one option \(value: 'five'\)"),
        (2, TEXTS, "text", r"is not the text of one option \(value: 2\)"),
        (
            4,
            TEXTS,
            "auto",
            r"is out of range \(value: 4\).*from 0 to 3.*counts from 1.*answer_form: index_from_1",
        ),
        ("4", TEXTS, "index_from_0", r"is out of range \(value: '4'\)"),
        (
            0,
            TEXTS,
            "index_from_1",
            r"is out of range \(value: 0\).*from 1 to 4.*counts from 0.*answer_form: index_from_0",
        ),
        (5, TEXTS, "index_from_1", r"is out of range \(value: 5\)"),
        (
            -1,
            TEXTS,
            "auto",
            r"is out of range \(value: -1\).*-1 often marks a row whose answer is not public",
        ),
        (True, TEXTS, "auto", r"is neither .*\(value: True\)"),
        (1.0, TEXTS, "auto", r"is neither .*\(value: 1.0\)"),
        (float("nan"), TEXTS, "auto", r"is neither .*\(value: nan\)"),
        (["A"], TEXTS, "auto", r"is neither .*\(value: \['A'\]\)"),
        ({"label": "A"}, TEXTS, "letter", r"is not a letter"),
        ("", TEXTS, "auto", r"is neither .*\(value: ''\)"),
        ("²", TEXTS, "letter", r"is not a letter"),
    ],
)
def test_values_that_are_refused(
    value: object, choices: list[str], form: Any, problem: str
) -> None:
    with pytest.raises(DataError, match=rf"pool.csv:7: field 'key': {problem}") as caught:
        answers.option_index(PLACE, value, choices, form)
    assert caught.value.exit_code == 2


def _load(path: Path, form: str | None = None, **fields: object) -> list[Question]:
    columns = {"question": "q", "choices": "options", "answer": "key", **fields} | (
        {"answer_form": form} if form else {}
    )
    source = {
        "kind": "huggingface",
        "path": str(path),
        "domain": "made",
        "splits": {"test": "train"},
        "fields": columns,
    }
    config = from_dict({"output_dir": "x", "questions": {"sources": [{"kind": "world"}, source]}})
    return [question for _, question in load_source(config.questions.sources[1], 0)]


def _classes(path: Path, names: list[str], numbers: list[int], choices: list[str] = TEXTS) -> Path:
    import datasets

    features = {"q": datasets.Value("string"), "options": datasets.List(datasets.Value("string"))}
    features["key"] = datasets.ClassLabel(names=names)
    rows = [
        {"q": f"Question {i}?", "options": choices, "key": number}
        for i, number in enumerate(numbers)
    ]
    made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    made.save_to_disk(str(path)) if not path.suffix else made.to_parquet(str(path))
    return path


@pytest.mark.parametrize("file", ["train.parquet", "saved"])
@pytest.mark.parametrize(
    ("names", "form", "expected"),
    [
        (["A", "B", "C", "D"], None, [0, 1, 2, 3]),
        (["D", "A", "C", "B"], None, [3, 0, 2, 1]),
        (["d", "a", "c", "b"], "letter", [3, 0, 2, 1]),
        (["B", "C", "D"], None, [1, 2, 3]),
        (["0", "1", "2", "3"], None, [0, 1, 2, 3]),
        (["3", "0", "2", "1"], "index_from_0", [3, 0, 2, 1]),
        (["1", "2", "3", "4"], "index_from_1", [0, 1, 2, 3]),
        (["2", "1"], "index_from_1", [1, 0]),
        (["two", "one", "four"], None, [1, 0, 3]),
        (["(B)", "(A)"], None, [1, 0]),
    ],
)
def test_classes_count_by_their_names(
    file: str, names: list[str], form: str | None, expected: list[int], tmp_path: Path
) -> None:
    path = _classes(tmp_path / file, names, list(range(len(names))))
    assert [question.answer for question in _load(path, form)] == expected


@pytest.mark.parametrize("form", [None, "index_from_0"])
def test_numbered_classes_that_do_not_begin_at_0_are_refused(
    form: str | None, tmp_path: Path
) -> None:
    path = _classes(tmp_path / "train.parquet", ["1", "2", "3", "4"], [0, 1])
    with pytest.raises(
        DataError,
        match=r"field 'key': has the classes 1, 2, 3, 4, which do not count from 0. Set"
        r" fields.answer_form",
    ):
        _load(path, form)


def test_classes_that_name_no_option_are_refused(tmp_path: Path) -> None:
    path = _classes(tmp_path / "train.parquet", ["yes", "no"], [0])
    with pytest.raises(
        DataError, match=r"train.parquet:1: field 'key': is neither .*\(value: 'yes'\)"
    ):
        _load(path)
    path = _classes(tmp_path / "unlabelled.parquet", ["A", "B"], [0, -1])
    with pytest.raises(
        DataError,
        match=r"unlabelled.parquet:2: field 'key': is out of range \(value: -1\).*not public",
    ):
        _load(path)


@pytest.mark.parametrize("keys", [[0, 2], ["0", "2"], ["D", "C"]])
def test_classes_that_the_readme_declares(keys: list[object], tmp_path: Path) -> None:
    """Files without types of their own, next to the types that the hub keeps in README.md."""
    rows = [{"q": f"q{i}", "options": TEXTS, "key": key} for i, key in enumerate(keys)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: q\n    dtype: string\n  - name:"
        " options\n    list: string\n"
        "  - name: key\n    dtype:\n      class_label:\n        names:\n          '0': D\n"
        "          '1': A\n          '2': C\n"
        "          '3': B\n---\n# A dataset\n"
    )
    assert [question.answer for question in _load(tmp_path)] == [3, 2]
    (tmp_path / "train.jsonl").write_text(json.dumps({"q": "q", "options": TEXTS, "key": 9}) + "\n")
    with pytest.raises(
        DataError,
        match=r"train.jsonl:1: field 'key': is not one of the column's 4 classes D, A, C, B"
        r" \(value: 9\)",
    ):
        _load(tmp_path)


def test_classes_inside_a_column(tmp_path: Path) -> None:
    import datasets

    inner = {
        "options": datasets.List(datasets.Value("string")),
        "key": datasets.ClassLabel(names=["B", "A"]),
    }
    features = datasets.Features(
        {"q": datasets.Value("string"), "asked": inner, "topics": datasets.List(inner["key"])}
    )
    row = {"q": "q", "asked": {"options": TEXTS, "key": 0}, "topics": [1, 0]}
    datasets.Dataset.from_list([row], features=features).to_parquet(str(tmp_path / "a.parquet"))
    (question,) = _load(tmp_path / "a.parquet", choices="asked.options", answer="asked.key")
    assert question.answer == 1
    features["asked"]["key"] = datasets.ClassLabel(names=["1", "2"])
    datasets.Dataset.from_list([row], features=features).to_parquet(str(tmp_path / "b.parquet"))
    with pytest.raises(
        DataError, match=r"field 'asked.key': has the classes 1, 2, which do not count from 0"
    ):
        _load(tmp_path / "b.parquet", choices="asked.options", answer="asked.key")


def test_a_class_that_is_a_subject_is_its_name(tmp_path: Path) -> None:
    import datasets

    features = {
        "q": datasets.Value("string"),
        "options": datasets.List(datasets.Value("string")),
        "key": datasets.Value("string"),
    }
    features["topic"] = datasets.ClassLabel(names=["law", "biology"])
    row = {"q": "q", "options": TEXTS, "key": "B", "topic": 1}
    datasets.Dataset.from_list([row], features=datasets.Features(features)).to_parquet(
        str(tmp_path / "a.parquet")
    )
    assert _load(tmp_path / "a.parquet", subject="topic")[0].subject == "biology"


@pytest.mark.parametrize(
    ("form", "keys", "expected"),
    [
        (None, ["A", "b", "(C)", "D."], [0, 1, 2, 3]),
        (None, ["0", "1", "2", "3"], [0, 1, 2, 3]),
        ("index_from_1", ["1", "2", "3", "4"], [0, 1, 2, 3]),
        (None, ["two", "A", "3", "one"], [1, 0, 3, 0]),
    ],
)
def test_answers_of_a_csv_file_with_a_column_for_each_option(
    form: str | None, keys: list[str], expected: list[int], tmp_path: Path
) -> None:
    lines = [
        "q,A,B,C,D,key",
        *(f"Question {i}?,one,two,three,four,{key}" for i, key in enumerate(keys)),
    ]
    (tmp_path / "pool.csv").write_text("\n".join(lines))
    found = _load(tmp_path / "pool.csv", form, choices=["A", "B", "C", "D"])
    assert [question.answer for question in found] == expected and found[0].choices == TEXTS


def test_rows_with_fewer_options_than_columns(tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text("q,A,B,C,D,key\nq1,one,two,three,,C\nq2,one,two,,,1\n")
    found = _load(tmp_path / "pool.csv", choices=["A", "B", "C", "D"])
    assert [(len(question.choices), question.answer) for question in found] == [(3, 2), (2, 1)]
    for row, problem in {
        "one,two,three,,D": r"pool.csv:2: field 'key': is neither an option's index nor its"
        r" letter .*\(value: 'D'\)",
        "one,,three,four,A": r"pool.csv:2: field 'B': must be a non-empty string \(value: ''\)",
        "one,,,,A": r"pool.csv:2: field 'B': must be a non-empty string",
    }.items():
        (tmp_path / "pool.csv").write_text(f"q,A,B,C,D,key\nq1,{row}\n")
        with pytest.raises(DataError, match=problem):
            _load(tmp_path / "pool.csv", choices=["A", "B", "C", "D"])


@pytest.mark.parametrize(
    ("labels", "value", "expected"),
    [
        (["A", "B", "C"], "B", 1),
        (
            ["1", "2", "3"],
            "1",
            0,
        ),  # as in some rows of ARC; an index from 0 would be the second option
        (["1", "2", "3"], 3, 2),
        (["C", "A", "B"], "A", 1),
        (["c", "a", "b"], "B", 2),
        (["1", "2", "3"], "0", None),
        (["A", "A", "B"], "A", None),
    ],
)
def test_options_with_labels_of_their_own(
    labels: list[str], value: object, expected: int | None, tmp_path: Path
) -> None:
    row = {
        "question": "q",
        "choices": {"text": ["x", "y", "z"], "label": labels},
        "answerKey": value,
    }
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")

    def load(**form: str) -> list[int | None]:
        fields = {"choices": "choices.text", "answer": "answerKey", **form}
        source = {
            "kind": "huggingface",
            "path": str(tmp_path),
            "domain": "d",
            "splits": {"test": "test"},
            "fields": fields,
        }
        raw = {"output_dir": "x", "questions": {"sources": [{"kind": "world"}, source]}}
        return [
            question.answer for _, question in load_source(from_dict(raw).questions.sources[1], 0)
        ]

    if expected is None:
        with pytest.raises(
            DataError,
            match=r"test.jsonl:1: field 'answerKey': names (none|several) of the options' labels",
        ):
            load()
    else:
        assert load() == [expected]
    if value == "1":
        assert load(answer_form="index_from_0") == [1]  # what is set counts
