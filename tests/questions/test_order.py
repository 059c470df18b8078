"""Drawn questions and their ids do not depend on the order of the rows in a file."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from ift_scale import draws
from ift_scale.config import Source
from ift_scale.questions import xiezhi
from ift_scale.questions.sources import load_source
from ift_scale.records import Question


def _load(settings: dict[str, Any], seed: int = 0) -> list[Question]:
    return [
        question for _, question in load_source(TypeAdapter(Source).validate_python(settings), seed)
    ]


def _jsonl(path: Path, rows: list[dict[str, Any]], order: random.Random | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    if order:
        order.shuffle(rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _rows(count: int, **fields: Any) -> list[dict[str, Any]]:
    row = {"question": "Which one is {}?", "choices": ["one", "two", "three", "four"]} | fields
    return [
        row | {"question": row["question"].format(number), "answer": number % 4}
        for number in range(count)
    ]


def _paper(folder: Path, order: random.Random | None) -> dict[str, Any]:
    for split, count in {"dev": 5, "train": 40, "test": 30}.items():
        rows = [row | {"id": number} for number, row in enumerate(_rows(count))]
        _jsonl(
            folder / f"{split}.jsonl", rows, order if split != "dev" else None
        )  # demonstrations go by the file, as in the paper
    return {"kind": "paper", "domain": "d", "path": str(folder), "max_train": 9, "max_test": 7}


def _xiezhi(folder: Path, order: random.Random | None) -> dict[str, Any]:
    rows = [xiezhi.EXAMPLE | {"question": f"Question {number}"} for number in range(300)]
    rows += rows[:2]  # equal rows: two questions all the same
    return {
        "kind": "xiezhi",
        "domain": "history",
        "path": str(_jsonl(folder / "all.json", rows, order)),
        "labels": ["History"],
        "max_train": 20,
    }


def _mmlu_csv(folder: Path, order: random.Random | None) -> dict[str, Any]:
    for split, count in {"dev": 5, "test": 20}.items():
        rows = [[row["question"], *row["choices"], "ABCD"[row["answer"]]] for row in _rows(count)]
        if order and split == "test":
            order.shuffle(rows)
        (folder / split).mkdir(parents=True, exist_ok=True)
        with (folder / split / f"anatomy_{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return {"kind": "mmlu", "path": str(folder), "max_per_subject": 6}


def _mmlu_jsonl(folder: Path, order: random.Random | None) -> dict[str, Any]:
    for split, count in {"dev": 5, "test": 20}.items():
        rows = [
            row | {"id": f"anatomy/{number}"}
            for number, row in enumerate(_rows(count, subject="anatomy"))
        ]
        _jsonl(folder / f"{split}.jsonl", rows, order if split == "test" else None)
    return {"kind": "mmlu", "path": str(folder), "max_per_subject": 6}


def _cmmlu(folder: Path, order: random.Random | None) -> dict[str, Any]:
    for split, count in {"dev": 5, "test": 20}.items():
        rows: list[list[Any]] = [
            [n, f"问题 {n}", "a", "b", "c", "d", "ABCD"[n % 4]] for n in range(count)
        ]
        if order and split == "test":
            order.shuffle(rows)
        (folder / split).mkdir(parents=True, exist_ok=True)
        with (folder / split / "anatomy.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["", "Question", "A", "B", "C", "D", "Answer"], *rows])
    return {"kind": "cmmlu", "path": str(folder), "subjects": ["anatomy"], "max_per_subject": 6}


def _hub(folder: Path, order: random.Random | None) -> dict[str, Any]:
    _jsonl(folder / "train.jsonl", _rows(40), order)
    _jsonl(folder / "validation.jsonl", _rows(5), None)
    _jsonl(folder / "test.jsonl", _rows(30), order)
    splits = {"dev": "validation", "train": "train", "test": "test"}
    fields = {"question": "question", "choices": "choices", "answer": "answer"}
    return {
        "kind": "huggingface",
        "path": str(folder),
        "domain": "d",
        "splits": splits,
        "fields": fields,
        "max_train": 9,
        "max_test": 7,
    }


@pytest.mark.parametrize("made", [_paper, _xiezhi, _mmlu_csv, _mmlu_jsonl, _cmmlu, _hub])
def test_a_shuffled_file_gives_the_same_questions(made: Any, tmp_path: Path) -> None:
    found = _load(made(tmp_path / "a", None))
    shuffled = _load(made(tmp_path / "b", random.Random(3)))
    assert sorted(shuffled, key=lambda q: q.id) == sorted(found, key=lambda q: q.id)
    assert len({q.id for q in found}) == len(found)
    # The demonstrations are the first of a shuffle by index: their order must be the same too.
    assert [q for q in shuffled if q.split == "dev"] == [q for q in found if q.split == "dev"]
    assert {q.id for q in _load(made(tmp_path / "a", None), seed=1)} != {q.id for q in found}


def test_one_question_less_changes_a_limited_pool_by_one(tmp_path: Path) -> None:
    settings = _paper(tmp_path, None)
    found = [q.id for q in _load(settings) if q.split == "train"]
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    for gone in (0, 17, 39):
        (tmp_path / "train.jsonl").write_text("".join(lines[:gone] + lines[gone + 1 :]))
        left = {q.id for q in _load(settings) if q.split == "train"}
        assert len(left) == 9 and len(left & set(found)) == (8 if f"d/train/{gone}" in found else 9)


def test_a_draw_is_a_uniform_sample() -> None:
    ids = [f"q{number}" for number in range(20)]
    hits = dict.fromkeys(ids, 0)
    for seed in range(2000):
        random_split = draws.sample(ids, 5, f"key/{seed}")
        assert len(set(random_split)) == 5
        for id in random_split:
            hits[id] += 1
    # Binomial(2000, 1/4): five standard deviations are 97.
    assert all(abs(count - 500) < 97 for count in hits.values())
    assert (
        draws.sample(ids, 5, "key")
        == draws.sample(ids, 9, "key")[:5]
        == draws.sample(ids[::-1], 5, "key")
    )
    with pytest.raises(ValueError, match="21 of 20 ids"):
        draws.sample(ids, 21, "key")


def test_equal_rows_get_numbers() -> None:
    unique = draws.Unique()
    first, other = draws.content_id({"a": 1, "b": 2}), draws.content_id({"a": 1})
    assert first == draws.content_id({"b": 2, "a": 1}) and len(first) == 16
    assert [unique(id) for id in (first, other, first, first)] == [
        first,
        other,
        f"{first}-2",
        f"{first}-3",
    ]
