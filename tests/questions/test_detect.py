"""Recognising sources: whatever is recognised is loaded with the settings that were found."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from ift_scale.config.file import from_dict
from ift_scale.errors import DataError
from ift_scale.questions import (
    arc,
    ceval,
    cmmlu,
    entity_questions,
    medmcqa,
    medqa,
    popqa,
    truthfulqa,
    xiezhi,
)
from ift_scale.questions.detect import detect
from ift_scale.questions.sources import load_source
from ift_scale.records import Question

Row = dict[str, Any]
TABLE = {"question": "Which?", "choices": ["one", "two", "three", "four"], "answer": 1}


def _load(settings: Row) -> list[Question]:
    sources = [{"kind": "world"}, settings]
    config = from_dict({"output_dir": "x", "questions": {"sources": sources}})
    return [question for _, question in load_source(config.questions.sources[1], 0)]


def _splits(settings: Row) -> dict[str, int]:
    found: dict[str, int] = {}
    for question in _load(settings):
        found[question.split] = found.get(question.split, 0) + 1
    return found


def _rows(example: Row, count: int) -> list[Row]:
    """The example with other texts, and ids if it has one."""
    name = "Question" if "Question" in example else "question"
    ids = [{"id": f"n{i}"} if "id" in example else {} for i in range(count)]
    return [example | {name: f"{example[name]} {i}"} | ids[i] for i in range(count)]


def _jsonl(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _csv(path: Path, rows: list[Row], header: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if header:
            writer.writeheader()
        writer.writerows(rows)
    return path


# Names and hub ids.


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("world", {"kind": "world"}),
        ("mmlu", {"kind": "mmlu", "path": "cais/mmlu"}),
        ("cais/mmlu", {"kind": "mmlu", "path": "cais/mmlu"}),
        ("medmcqa", {"kind": "medmcqa"}),
        ("usmle=medqa", {"kind": "medqa", "domain": "usmle"}),
        ("allenai/ai2_arc", {"kind": "arc"}),
        ("truthfulqa", {"kind": "truthfulqa"}),
        ("akariasai/PopQA", {"kind": "popqa"}),
        ("cmmlu", {"kind": "cmmlu"}),
        ("ceval/ceval-exam", {"kind": "ceval"}),
    ],
)
def test_published_datasets_by_name(spec: str, settings: Row) -> None:
    assert detect(spec).settings == settings
    sources = [{"kind": "world"}, settings]
    from_dict({"output_dir": "x", "questions": {"sources": sources}})


# Folders of published datasets.


def test_the_papers_pool(pool: Path) -> None:
    found = detect(f"law={pool}")
    assert found.settings == {"kind": "paper", "domain": "law", "path": str(pool)}
    assert _splits(found.settings) == {"dev": 5, "train": 6, "test": 3}
    assert detect(str(pool)).settings["domain"] == "pool"
    assert detect(str(pool)).kind == "JSON lines in the paper's format"


@pytest.mark.parametrize("inside", ["", "data"])
def test_mmlu_as_hendrycks_published_it(tmp_path: Path, inside: str) -> None:
    rows = [
        {"q": f"Which {i}?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "A"}
        for i in range(2)
    ]
    for split in ("dev", "val", "test"):
        path = tmp_path / "mmlu" / inside / split / f"college_medicine_{split}.csv"
        _csv(path, rows, header=False)
    found = detect(str(tmp_path / "mmlu"))
    assert found.settings["kind"] == "mmlu" and found.kind == "MMLU"
    assert _splits(found.settings) == {"dev": 2, "test": 2}


@pytest.mark.parametrize("layout", ["jsonl", "hub"])
def test_mmlu_with_a_column_of_subjects(tmp_path: Path, layout: str) -> None:
    rows = [TABLE | {"subject": "anatomy", "question": f"Which {i}?"} for i in range(3)]
    for split in ("dev", "test"):
        name = f"{split}.jsonl" if layout == "jsonl" else f"all/{split}-00000-of-00001.jsonl"
        _jsonl(tmp_path / "copy" / name, rows)
    found = detect(str(tmp_path / "copy"))
    assert found.settings == {"kind": "mmlu", "path": str(tmp_path / "copy")}
    assert _splits(found.settings) == {"dev": 3, "test": 3}


def test_mmlu_of_the_shared_data(shared_data: Path) -> None:
    assert detect(str(shared_data / "mmlu")).settings["kind"] == "mmlu"
    assert detect(str(shared_data / "pools" / "medmcqa")).settings["kind"] == "huggingface"
    assert detect(str(shared_data / "pools" / "engineering")).settings["kind"] == "paper"


@pytest.mark.parametrize(
    ("kind", "subject"), [("mmlu", "abstract_algebra"), ("cmmlu", "agronomy"), ("ceval", "law")]
)
def test_subjects_that_several_benchmarks_have(tmp_path: Path, kind: str, subject: str) -> None:
    """Copies of the Hub's have a folder for each subject; all three have high school physics."""
    for name in (subject, "high_school_physics"):
        for split in ("dev", "val", "test"):
            _jsonl(tmp_path / name / f"{split}.jsonl", _rows(TABLE, 3))
    assert detect(str(tmp_path)).settings == {"kind": kind, "path": str(tmp_path)}


def test_ceval_and_cmmlu(tmp_path: Path) -> None:
    for split, count in (("dev", 5), ("val", 3)):
        _csv(tmp_path / f"ceval/{split}/law_{split}.csv", _rows(ceval.EXAMPLE, count))
    for split, count in (("dev", 5), ("test", 2)):
        _csv(tmp_path / f"cmmlu/{split}/agronomy.csv", _rows(cmmlu.EXAMPLE, count))
    for kind, test in (("ceval", 3), ("cmmlu", 2)):
        found = detect(str(tmp_path / kind))
        assert found.settings == {"kind": kind, "path": str(tmp_path / kind)}
        assert _splits(found.settings) == {"dev": 5, "test": test}


@pytest.mark.parametrize("inside", ["", "dataset"])
def test_entity_questions(tmp_path: Path, inside: str) -> None:
    for split in ("dev", "train", "test"):
        path = tmp_path / inside / split / f"P36.{split}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(_rows(entity_questions.EXAMPLE, 2)))
    found = detect(str(tmp_path))
    assert found.settings == {"kind": "entity_questions", "path": str(tmp_path / inside)}
    assert _splits(found.settings) == {"dev": 2, "train": 2, "test": 2}


@pytest.mark.parametrize(
    ("kind", "example", "splits"),
    [
        ("medmcqa", medmcqa.EXAMPLE, ("train", "validation", "test")),
        ("medqa", medqa.EXAMPLE, ("train", "test")),
        ("arc", arc.EXAMPLE, ("train", "validation", "test")),
        ("truthfulqa", truthfulqa.EXAMPLE, ("validation",)),
        ("popqa", popqa.EXAMPLE, ("test",)),
    ],
)
def test_copies_of_published_datasets(
    tmp_path: Path, kind: str, example: Row, splits: tuple[str, ...]
) -> None:
    for split in splits:
        _jsonl(tmp_path / f"{split}.jsonl", _rows(example, 15))
    found = detect(f"own={tmp_path}")
    assert found.settings == {"kind": kind, "domain": "own", "path": str(tmp_path)}
    assert {"dev", "test"} <= set(_splits(found.settings))


def test_xiezhi(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "Xiezhi v1.json", _rows(xiezhi.EXAMPLE, 300))
    found = detect(str(path))
    assert found.settings == {"kind": "xiezhi", "domain": "xiezhi_v1", "path": str(path)}
    assert _splits(found.settings) == {"dev": 10, "test": 250, "train": 40}


def test_medmcqa_of_its_authors_counts_from_1(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        _jsonl(tmp_path / f"{split}.json", _rows(medmcqa.EXAMPLE | {"cop": 3}, 20))
    found = detect(f"medicine={tmp_path}")
    assert found.settings["kind"] == "huggingface"
    assert found.settings["fields"]["answer_form"] == "index_from_1"
    questions = _load(found.settings)
    assert {q.choices[q.answer or 0] for q in questions} == {medmcqa.EXAMPLE["opc"]}
    assert _splits(found.settings) == {"dev": 10, "train": 10, "test": 20}


# Tables of one's own.


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (TABLE, {"question": "question", "choices": "choices", "answer": "answer"}),
        (
            {"query": "?", "options": ["a1", "b2"], "label": 0, "uid": "u", "rationale": "So."},
            {
                "question": "query", "choices": "options", "answer": "label", "id": "uid",
                "explanation": "rationale",
            },
        ),
        (
            {"question": "?", "A": "a1", "B": "b2", "C": "c3", "answer": "C", "topic": "law"},
            {
                "question": "question", "choices": ["A", "B", "C"], "answer": "answer",
                "subject": "topic",
            },
        ),
        (
            {"prompt": "?", "option_a": "a1", "option_b": "b2", "correct_option": "A"},
            {
                "question": "prompt", "choices": ["option_a", "option_b"],
                "answer": "correct_option",
            },
        ),
        (
            {"stem": "?", "option1": "a1", "option2": "b2", "answer": "a1"},
            {"question": "stem", "choices": ["option1", "option2"], "answer": "answer"},
        ),
        (
            {"question_stem": "?", "choices": {"text": ["a", "b"]}, "answerKey": "B"},
            {"question": "question_stem", "choices": "choices.text", "answer": "answerKey"},
        ),
        ({"question": "?", "answers": ["a1"]}, {"question": "question", "aliases": "answers"}),
    ],
)  # fmt: skip
def test_columns_by_their_usual_names(tmp_path: Path, row: Row, fields: Row) -> None:
    name = fields["question"]
    ids = [{"uid": f"u{i}"} if "uid" in row else {} for i in range(40)]
    rows = [row | {name: f"Which {i}?"} | ids[i] for i in range(40)]
    found = detect(str(_jsonl(tmp_path / "own.jsonl", rows)))
    assert found.settings["kind"] == "huggingface" and found.settings["fields"] == fields
    assert _splits(found.settings) == {"dev": 10, "train": 22, "test": 8}


def test_a_csv_table_without_splits(tmp_path: Path) -> None:
    rows = [{"question": f"Which {i}?", "A": "1.50", "B": "NA", "answer": "B"} for i in range(2000)]
    found = detect(str(_csv(tmp_path / "My Law Questions.csv", rows)))
    assert found.settings["domain"] == "my_law_questions"
    splits = {"dev": "train[:10]", "train": "train[10:-250]", "test": "train[-250:]"}
    assert found.settings["splits"] == splits
    assert _splits(found.settings) == {"dev": 10, "train": 1740, "test": 250}
    ids = [question.question for question in _load(found.settings)]
    assert len(set(ids)) == 2000


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (("train", "test"), {"dev": "train[:10]", "train": "train[10:]", "test": "test"}),
        (("train", "val"), {"dev": "train[:10]", "train": "train[10:]", "test": "val"}),
        (("train", "dev"), {"dev": "train[:10]", "train": "train[10:]", "test": "dev"}),
        (("train", "valid", "test"), {"dev": "valid[:10]", "train": "train", "test": "test"}),
        (("train", "dev", "test"), {"dev": "dev", "train": "train", "test": "test"}),
        (("train", "dev", "val", "test"), {"dev": "dev", "train": "train", "test": "test"}),
        (("dev", "test"), {"dev": "dev", "test": "test"}),
    ],
)  # fmt: skip
def test_which_splits_serve_as_ours(tmp_path: Path, files: tuple[str, ...], splits: Row) -> None:
    options = {"A": "a", "B": "b", "answer": "A"}
    for split in files:
        rows = [{"question": f"{split} {i}?"} | options for i in range(20)]
        _csv(tmp_path / f"{split}.csv", rows)
    found = detect(f"own={tmp_path}")
    assert found.settings["splits"] == splits
    assert found.settings.get("collection", "pool") == (
        "pool" if "train" in splits else "benchmark"
    )
    assert set(_splits(found.settings)) == set(splits)


@pytest.mark.parametrize("hidden", ["", -1, None])
def test_a_test_split_without_answers_is_not_used(tmp_path: Path, hidden: Any) -> None:
    for split in ("train", "validation", "test"):
        answer = hidden if split == "test" else 1
        _jsonl(tmp_path / f"{split}.jsonl", _rows(TABLE | {"answer": answer}, 20))
    found = detect(f"own={tmp_path}")
    assert found.settings["splits"]["test"] == "validation"
    assert _splits(found.settings) == {"dev": 10, "train": 10, "test": 20}


def test_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = datasets.Dataset.from_list(_rows(TABLE, 20))
    found = datasets.DatasetDict({"train": rows, "validation": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, **options: found)
    settings = detect("some-org/Own-Questions").settings
    assert settings["kind"] == "huggingface" and settings["path"] == "some-org/Own-Questions"
    assert settings["domain"] == "own_questions" and settings["splits"]["test"] == "validation"
    assert _splits(settings) == {"dev": 10, "train": 10, "test": 20}


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(_rows(medqa.EXAMPLE, 60)).save_to_disk(tmp_path / "saved")
    assert detect(str(tmp_path / "saved")).settings["kind"] == "medqa"


# What is not recognised.


def _line(row: Row) -> dict[str, str]:
    return {"train.jsonl": json.dumps(row) + "\n"}


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "contains no data file"),
        ({"notes.txt": "x"}, "contains no data file"),
        (_line({"text": "hello", "n": 1}), "to hold the question; the columns are text, n"),
        (_line({"question": "?", "answer": 1}), "no column is known to hold the options"),
        (_line({"question": "?", "A": "a", "B": "b"}), "no column is known to hold the answer"),
        (_line({"question": "?", "A": "a", "B": "b", "answer": "A"}), "has 1 rows, too few"),
        ({"train.jsonl": "{broken\n"}, "train.jsonl:1"),
        ({"test.zip": "x"}, "Unpack test.zip there first"),
    ],
)  # fmt: skip
def test_what_is_not_recognised_is_one_error(tmp_path: Path, files: Row, problem: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        detect(str(tmp_path))
    assert problem in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_path_that_does_not_exist() -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        detect("data/nowhere/at/all")


@pytest.mark.parametrize("spec", ["law=world", "law=mmlu", "law=ceval"])
def test_a_domain_for_what_has_its_own(spec: str) -> None:
    with pytest.raises(DataError, match="has the domains of its subjects"):
        detect(spec)
