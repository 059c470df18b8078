"""Dataset folders in practice: archives, hub downloads, clones, plain folders, any CSV."""

import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ift_scale.config import Source
from ift_scale.config.file import from_dict
from ift_scale.errors import DataError
from ift_scale.questions import arc, ceval, cmmlu, medmcqa, medqa, popqa, truthfulqa, xiezhi
from ift_scale.questions.sources import input_digests, load_source
from ift_scale.records import Question

Row = dict[str, Any]


def _source(kind: str, path: Path, **settings: Any) -> Source:
    raw = {
        "output_dir": "x",
        "questions": {
            "sources": [{"kind": "world"}, {"kind": kind, "path": str(path), **settings}]
        },
    }
    return from_dict(raw).questions.sources[1]


def _load(kind: str, path: Path, **settings: Any) -> list[Question]:
    return [question for _, question in load_source(_source(kind, path, **settings), 0)]


def _contents(questions: Iterable[Question]) -> list[tuple[str, str, list[str], int | None]]:
    return sorted((q.split, q.question, q.choices, q.answer) for q in questions)


def _parquet(path: Path, rows: list[Row]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def _csv(path: Path, rows: list[Row], encoding: str = "utf-8", end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
    return path


def _jsonl(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _numbered(example: Row, count: int, **changes: Any) -> list[Row]:
    name = "Question" if "Question" in example else "question"
    ids = [{"id": f"n{i}"} if "id" in example else {} for i in range(count)]
    return [example | changes | {name: f"{example[name]} {i}"} | ids[i] for i in range(count)]


def _readme(folder: Path, configs: dict[str, dict[str, str]], default: str | None = None) -> None:
    """README.md as the hub writes it."""
    lines = ["---", "license: mit", "configs:"]
    for name, splits in configs.items():
        lines += [
            f"- config_name: {name}",
            *(["  default: true"] if name == default else []),
            "  data_files:",
        ]
        lines += [
            line
            for split, pattern in splits.items()
            for line in (f"  - split: {split}", f"    path: {pattern}")
        ]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# The dataset", "---"]) + "\n")


# MMLU, of the real questions


@pytest.fixture
def mmlu_rows(shared_data: Path) -> dict[str, list[Row]]:
    """Two subjects' real rows by split."""
    found = {}
    for split in ("dev", "val", "test"):
        with gzip.open(shared_data / "mmlu" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = map(json.loads, file)
            found[split] = [
                row for row in rows if row["subject"] in ("abstract_algebra", "college_medicine")
            ]
    return found


def _mmlu_expected(rows: dict[str, list[Row]]) -> list[tuple[str, str, list[str], int]]:
    return sorted(
        (split, r["question"], r["choices"], r["answer"])
        for split in ("dev", "test")
        for r in rows[split]
    )


def _hub_mmlu(folder: Path, rows: dict[str, list[Row]]) -> None:
    """cais/mmlu as `hf download` leaves it, with its answers as class labels."""
    import datasets

    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "subject": datasets.Value("string"),
            "choices": datasets.List(datasets.Value("string")),
            "answer": datasets.ClassLabel(names=["A", "B", "C", "D"]),
        }
    )
    for split, found in rows.items():
        for name in ("all", "abstract_algebra", "college_medicine"):
            chosen = [
                {c: row[c] for c in features} for row in found if name in ("all", row["subject"])
            ]
            path = (
                folder
                / name
                / f"{'validation' if split == 'val' else split}-00000-of-00001.parquet"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(chosen, features=features).to_parquet(str(path))
    (folder / "auxiliary_train").mkdir()
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "test.jsonl").write_text("{}\n")
    (folder / "dataset_infos.json").write_text("{}")


def _with_readme(folder: Path) -> None:
    names = ("abstract_algebra", "all", "auxiliary_train", "college_medicine")
    _readme(
        folder,
        {
            name: {split: f"{name}/{split}-*" for split in ("test", "validation", "dev")}
            for name in names
        },
    )


def _without_all(folder: Path) -> None:
    for path in (folder / "all").iterdir():
        path.unlink()
    (folder / "all").rmdir()


@pytest.mark.parametrize("change", [lambda folder: None, _with_readme, _without_all])
def test_mmlu_as_a_downloaded_hub_folder(
    change: Callable[[Path], None], mmlu_rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    _hub_mmlu(tmp_path, mmlu_rows)
    change(tmp_path)
    questions = _load("mmlu", tmp_path)
    assert _contents(questions) == _mmlu_expected(mmlu_rows)
    assert len({q.id for q in questions}) == len(questions)
    assert Counter(q.domain for q in questions if q.split == "test") == {
        "other": 100,
        "medicine": 173,
    }
    few = _load("mmlu", tmp_path, max_per_subject=3)
    assert Counter(q.subject for q in few if q.split == "test") == {
        "abstract_algebra": 3,
        "college_medicine": 3,
    }


def test_one_subject_of_a_downloaded_mmlu(mmlu_rows: dict[str, list[Row]], tmp_path: Path) -> None:
    _hub_mmlu(tmp_path, mmlu_rows)
    for path, settings in (
        (tmp_path, {"name": "college_medicine"}),
        (tmp_path / "college_medicine", {}),
    ):
        questions = _load("mmlu", path, **settings)
        assert {q.subject for q in questions} == {"college_medicine"}
        assert Counter(q.split for q in questions) == {"dev": 5, "test": 173}


@pytest.mark.parametrize(
    ("encoding", "end"),
    [("utf-8", "\n"), ("utf-8", "\r\n"), ("utf-8-sig", "\n"), ("utf-16", "\r\n")],
)
@pytest.mark.parametrize("inside", ["", "data"])
def test_mmlu_as_hendrycks_csv(
    encoding: str, end: str, inside: str, mmlu_rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    for split, rows in mmlu_rows.items():
        for subject in ("abstract_algebra", "college_medicine"):
            path = tmp_path / inside / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding=encoding, newline="") as file:
                # Line ends inside a text are the file's, as a converted file has them.
                cells = [
                    [r["question"], *r["choices"], "ABCD"[r["answer"]]]
                    for r in rows
                    if r["subject"] == subject
                ]
                csv.writer(file, lineterminator=end).writerows(
                    [[c.replace("\n", end) for c in row] for row in cells]
                )
    questions = _load("mmlu", tmp_path)
    assert _contents(questions) == _mmlu_expected(mmlu_rows)
    ids = [q.id for q in questions if q.split == "dev"]
    assert len(set(ids)) == 10 and all(
        re.fullmatch(r"mmlu/dev/(abstract_algebra|college_medicine)/[0-9a-f]{16}", id) for id in ids
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("q,a,b,c,d,E", r"field 'answer': is not a letter from A to D \(value: 'E'\)"),
        ("q,a,b,c,d,2", r"field 'answer': is not a letter from A to D \(value: '2'\)"),
        ("q,a,,c,d,A", r"field 'B': must be a non-empty string \(value: ''\)"),
        ("q,a,b,c,d", r"must have the 6 columns"),
        (",a,b,c,d,A", r"field 'question': must be a non-empty string"),
    ],
)
def test_mmlu_csv_rows_that_are_refused(row: str, problem: str, tmp_path: Path) -> None:
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"anatomy_{split}.csv").write_text(f'"two\nlines",a,b,c,d,A\n{row}\n')
    with pytest.raises(DataError, match=rf"anatomy_dev.csv:3: {problem}"):
        _load("mmlu", tmp_path)


def test_mmlu_answers_as_classes(tmp_path: Path) -> None:
    """By name, whatever their order; numbers from 1 are no indices from 0."""
    import datasets

    def load(name: str, names: str) -> list[int | None]:
        features = datasets.Features(
            {
                "question": datasets.Value("string"),
                "choices": datasets.List(datasets.Value("string")),
                "answer": datasets.ClassLabel(names=list(names)),
            }
        )
        rows = [
            {"question": f"q {label}", "choices": list("wxyz"), "answer": label}
            for label in range(4)
        ]
        for split in ("dev", "test"):
            (tmp_path / name / "anatomy").mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows, features=features).to_parquet(
                str(tmp_path / name / "anatomy" / f"{split}.parquet")
            )
        return [q.answer for q in _load("mmlu", tmp_path / name) if q.split == "test"]

    assert load("letters", "DACB") == [3, 0, 2, 1] and load("numbers", "3012") == [3, 0, 1, 2]
    with pytest.raises(
        DataError,
        match=r"anatomy: field 'answer': has the classes 1, 2, 3, 4, which do not count from 0",
    ):
        load("from_1", "1234")


@pytest.mark.parametrize(
    "num_rows", [1, 3]
)  # a single row used to be taken for a header, and the benchmark for empty
def test_mmlu_csv_files_in_one_folder(num_rows: int, tmp_path: Path) -> None:
    for subject, split in product(("anatomy", "virology"), ("dev", "val", "test")):
        rows = "".join(f"{subject} {split} {number},a,b,c,d,C\n" for number in range(num_rows))
        (tmp_path / f"{subject}_{split}.csv").write_text(rows)
    expected = [
        (split, f"{subject} {split} {number}", list("abcd"), 2)
        for split, subject, number in product(
            ("dev", "test"), ("anatomy", "virology"), range(num_rows)
        )
    ]
    assert _contents(_load("mmlu", tmp_path)) == expected


def test_splits_without_a_row_are_refused(tmp_path: Path) -> None:
    """Not taken for a benchmark of no questions."""
    fields, settings = (
        {"choices": ["A", "B"]},
        {"domain": "d", "collection": "benchmark", "splits": {"test": "test"}},
    )
    for name, content in (("header", "question,A,B,answer\n"), ("empty", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.csv").write_text(content)
        with pytest.raises(
            DataError,
            match=rf"{name}: its split 'test' has no rows. Fetch it again, or set splits.test",
        ):
            _load("huggingface", tmp_path / name, fields=fields, **settings)
    row = {"question": "q", "choices": ["a", "b"], "answer": 0, "subject": "anatomy"}
    _jsonl(tmp_path / "mmlu" / "dev.jsonl", [row])
    _jsonl(tmp_path / "mmlu" / "test.jsonl", [])
    with pytest.raises(DataError, match=r"test.jsonl: contains no rows"):
        _load("mmlu", tmp_path / "mmlu")


def test_options_that_look_like_missing_values_are_texts(tmp_path: Path) -> None:
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"anatomy_{split}.csv").write_text(
            "q,NaN,NA,None,null,A\nq2,1.50,007,1e3,-,B\n"
        )
    assert [q.choices for q in _load("mmlu", tmp_path)][:2] == [
        ["NaN", "NA", "None", "null"],
        ["1.50", "007", "1e3", "-"],
    ]


# C-Eval and CMMLU

NO_EXPLANATION = {key: value for key, value in ceval.EXAMPLE.items() if key != "explanation"}


@pytest.mark.parametrize(
    ("encoding", "end"), [("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\n")]
)
def test_ceval_as_its_archive(encoding: str, end: str, tmp_path: Path) -> None:
    """dev has the column `explanation`, val and test do not, and test has no answers."""
    for subject in ("law", "accountant"):
        _csv(
            tmp_path / "dev" / f"{subject}_dev.csv",
            _numbered(ceval.EXAMPLE, 5, explanation="因为"),
            encoding,
            end,
        )
        _csv(tmp_path / "val" / f"{subject}_val.csv", _numbered(NO_EXPLANATION, 4), encoding, end)
        unanswered = {key: value for key, value in NO_EXPLANATION.items() if key != "answer"}
        _csv(tmp_path / "test" / f"{subject}_test.csv", _numbered(unanswered, 3), encoding, end)
    questions = _load("ceval", tmp_path)
    assert Counter((q.split, q.explanation) for q in questions) == {
        ("dev", "因为"): 10,
        ("test", None): 8,
    }
    assert all((q.choices, q.answer) == (["1", "2", "3", "4"], 2) for q in questions)
    with pytest.raises(
        DataError,
        match=r"accountant_test.csv:2: field 'answer': the answers of this split are not public",
    ):
        _load("ceval", tmp_path, splits={"dev": "dev", "test": "test"})


@pytest.mark.parametrize("has_readme", [True, False])
def test_ceval_as_a_downloaded_hub_folder(has_readme: bool, tmp_path: Path) -> None:
    for split, count in {"dev": 5, "val": 4, "test": 2}.items():
        rows = _numbered(ceval.EXAMPLE, count, **({"answer": ""} if split == "test" else {}))
        _parquet(tmp_path / "law" / f"{split}-00000-of-00001.parquet", rows)
    if has_readme:
        _readme(
            tmp_path,
            {
                name: {s: f"{name}/{s}-*" for s in ("test", "val", "dev")}
                for name in ("accountant", "law")
            },
        )
    questions = _load("ceval", tmp_path, subjects=["law"])
    assert Counter((q.domain, q.split) for q in questions) == {
        ("jurisprudence", "dev"): 5,
        ("jurisprudence", "test"): 4,
    }
    with pytest.raises(
        DataError,
        match=r"README.md: field 'configs': lists files .*'accountant'"
        if has_readme
        else "accountant",
    ):
        _load("ceval", tmp_path)


def test_cmmlu_as_the_hubs_parquet_copy(tmp_path: Path) -> None:
    for split, count in {"dev": 5, "test": 6}.items():
        _parquet(tmp_path / "anatomy" / split / "0000.parquet", _numbered(cmmlu.EXAMPLE, count))
    questions = _load("cmmlu", tmp_path, subjects=["anatomy"])
    assert Counter((q.domain, q.split) for q in questions) == {
        ("medicine", "dev"): 5,
        ("medicine", "test"): 6,
    }


def test_an_archive_that_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "cmmlu_v1_0_1.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "cmmlu.py").write_text("")
    with pytest.raises(
        DataError, match=r"contains no data file .*Unpack cmmlu_v1_0_1.zip there first"
    ):
        _load("medmcqa", tmp_path)


# The other published datasets, each with the files in its hub repository


def _medmcqa(folder: Path) -> None:
    for split, count in {"train": 12, "validation": 3, "test": 2}.items():
        rows = _numbered(medmcqa.EXAMPLE, count, **({"cop": -1} if split == "test" else {}))
        for shard in (0, 1) if split == "train" else (0,):
            part = rows[6 * shard : 6 * shard + 6] if split == "train" else rows
            _parquet(
                folder
                / "data"
                / f"{split}-0000{shard}-of-0000{2 if split == 'train' else 1}.parquet",
                part,
            )
    _readme(
        folder, {"default": {split: f"data/{split}-*" for split in ("train", "test", "validation")}}
    )


def _arc(folder: Path) -> None:
    for name, first in (("ARC-Challenge", "c"), ("ARC-Easy", "e")):
        for split in ("train", "validation", "test"):
            _parquet(
                folder / name / f"{split}-00000-of-00001.parquet",
                _numbered(arc.EXAMPLE | {"question": first}, 11),
            )
    names = ("ARC-Challenge", "ARC-Easy")
    _readme(
        folder,
        {name: {s: f"{name}/{s}-*" for s in ("train", "validation", "test")} for name in names},
    )


def _truthfulqa(folder: Path) -> None:
    _parquet(
        folder / "multiple_choice" / "validation-00000-of-00001.parquet",
        _numbered(truthfulqa.EXAMPLE, 12),
    )
    _parquet(
        folder / "generation" / "validation-00000-of-00001.parquet",
        [{"question": "q", "best_answer": "a"}],
    )
    _readme(
        folder,
        {
            name: {"validation": f"{name}/validation-*"}
            for name in ("generation", "multiple_choice")
        },
    )


def _medqa(folder: Path) -> None:
    for split, count in {"train": 12, "test": 3}.items():
        _jsonl(folder / f"phrases_no_exclude_{split}.jsonl", _numbered(medqa.EXAMPLE, count))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage:\n- en\n---\n")


def _popqa(folder: Path) -> None:
    with (folder / "test.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(popqa.EXAMPLE), delimiter="\t")
        writer.writeheader()
        writer.writerows(_numbered(popqa.EXAMPLE, 14))
    (folder / "README.md").write_text("# PopQA\n")


DOWNLOADS: list[tuple[str, Callable[[Path], None], dict[str, Any], dict[str, int]]] = [
    ("medmcqa", _medmcqa, {}, {"dev": 10, "train": 2, "test": 3}),
    ("medqa", _medqa, {}, {"dev": 10, "train": 2, "test": 3}),
    ("arc", _arc, {}, {"dev": 10, "train": 11, "test": 11}),
    ("arc", _arc, {"name": "ARC-Easy"}, {"dev": 10, "train": 11, "test": 11}),
    ("truthfulqa", _truthfulqa, {}, {"dev": 10, "test": 2}),
    ("popqa", _popqa, {}, {"dev": 10, "test": 4}),
]


@pytest.mark.parametrize("has_readme", [True, False])
@pytest.mark.parametrize(("kind", "write", "settings", "counts"), DOWNLOADS)
def test_downloaded_hub_folders(
    kind: str,
    write: Callable[[Path], None],
    settings: Row,
    counts: dict[str, int],
    has_readme: bool,
    tmp_path: Path,
) -> None:
    write(tmp_path)
    if not has_readme:
        (tmp_path / "README.md").unlink()
    questions = _load(kind, tmp_path, **settings)
    assert Counter(q.split for q in questions) == counts
    if kind == "arc":
        assert {q.question[0] for q in questions} == {"e" if settings else "c"}


def test_a_missing_configuration(tmp_path: Path) -> None:
    _arc(tmp_path)
    with pytest.raises(
        DataError, match=r"has no configuration 'ARC-Eazy'. Set `name`: did you mean 'ARC-Easy'"
    ):
        _load("arc", tmp_path, name="ARC-Eazy")
    fields = {"choices": "choices.text", "answer": "answerKey"}
    settings: Row = {"domain": "science", "splits": {"test": "test"}, "fields": fields}
    with pytest.raises(
        DataError, match=r"has 2 configurations. Set `name` to one of ARC-Challenge, ARC-Easy"
    ):
        _load("huggingface", tmp_path, **settings)
    assert len(_load("huggingface", tmp_path, name="ARC-Easy", **settings)) == 11


def test_dev_and_validation_are_two_splits(tmp_path: Path) -> None:
    """`datasets` would make one split of them."""
    for split, count in {"dev": 2, "validation": 3, "test": 4}.items():
        _jsonl(tmp_path / f"{split}.jsonl", _numbered(medqa.EXAMPLE, count))
    found = _load("medqa", tmp_path, splits={"dev": "dev", "train": "validation", "test": "test"})
    assert Counter(q.split for q in found) == {"dev": 2, "train": 3, "test": 4}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train.csv", "dev.csv", "test.csv"], {"train": 2, "dev": 2, "test": 2}),
        (["data/train.csv", "data/dev.csv", "data/test.csv"], {"train": 2, "dev": 2, "test": 2}),
        (
            ["train/a.csv", "train/b.csv", "dev/a.csv", "test/a.csv"],
            {"train": 4, "dev": 2, "test": 2},
        ),
        (["law_train.csv", "law-dev.csv", "law.test.csv"], {"train": 2, "dev": 2, "test": 2}),
        (
            ["train-00000-of-00002.csv", "train-00001-of-00002.csv", "dev-0.csv", "test-0.csv"],
            {"train": 4, "dev": 2, "test": 2},
        ),
        (
            ["Train.csv", "Dev.csv", "Test.csv", "._Train.csv", ".git/train.csv"],
            {"train": 2, "dev": 2, "test": 2},
        ),
    ],
)
def test_folders_of_csv_files(files: list[str], expected: dict[str, int], tmp_path: Path) -> None:
    for number, name in enumerate(files):
        rows = [
            {"": 0, "question": f"{number} {i}", "A": "NA", "B": "1.50", "answer": "B"}
            for i in range(2)
        ]
        _csv(tmp_path / name, rows, encoding="utf-8-sig", end="\r\n")
    splits = {"train": "train", "dev": "dev", "test": "test"}
    found = _load(
        "huggingface", tmp_path, domain="d", splits=splits, fields={"choices": ["A", "B"]}
    )
    assert Counter(q.split for q in found) == expected
    assert all((q.choices, q.answer) == (["NA", "1.50"], 1) for q in found)


def test_a_folder_of_csv_files_without_splits_is_one(tmp_path: Path) -> None:
    for subject in ("law", "biology"):
        _csv(
            tmp_path / f"{subject}.csv",
            [{"question": f"{subject} {i}", "A": "x", "B": "y", "answer": "A"} for i in range(3)],
        )
    splits = {"dev": "train[:1]", "test": "train[1:]"}
    found = _load(
        "huggingface", tmp_path, domain="d", splits=splits, fields={"choices": ["A", "B"]}
    )
    assert [q.question for q in found] == [
        "biology 0",
        "biology 1",
        "biology 2",
        "law 0",
        "law 1",
        "law 2",
    ]


def test_files_of_several_types_for_a_split_are_refused(tmp_path: Path) -> None:
    _jsonl(tmp_path / "train.jsonl", _numbered(medqa.EXAMPLE, 2))
    _parquet(tmp_path / "train.parquet", _numbered(medqa.EXAMPLE, 2))
    with pytest.raises(
        DataError, match=r"has files of several types for split train .*Remove the copies"
    ):
        _load("medqa", tmp_path)


def test_a_folder_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    made = datasets.Dataset.from_list(_numbered(medqa.EXAMPLE, 12))
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "saved"))
    assert Counter(q.split for q in _load("medqa", tmp_path / "saved")) == {
        "dev": 10,
        "train": 2,
        "test": 12,
    }


def test_xiezhi_with_labels_of_another_type(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.json", [xiezhi.EXAMPLE | {"labels": "History"}])
    with pytest.raises(
        DataError, match=r"a.json:1: field 'labels': must be a list of texts \(value: 'History'\)"
    ):
        _load("xiezhi", path, domain="history", labels=["History"])


# CSV and Parquet files

HEADER = "question,A,B,answer\n"


def _one_file(path: Path, **fields: Any) -> list[Question]:
    settings: Row = {
        "domain": "d",
        "splits": {"test": "train"},
        "fields": {"choices": ["A", "B"]} | fields,
    }
    return _load("huggingface", path, **settings)


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.csv.gz"])
def test_csv_texts_keep_their_line_ends_and_quotation_marks(name: str, tmp_path: Path) -> None:
    content = HEADER + '"a, ""b""\nc\r\nd\re",x,y,B\n\n"q2","x","y",A'
    data = content.encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = _one_file(tmp_path / name)
    assert [(q.question, q.answer) for q in found] == [('a, "b"\nc\nd\re', 1), ("q2", 0)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("question,A,A,answer\nq,x,y,A\n", r":1: field 'A': names two columns"),
        ("question,A,answer\nq,x,A\n", r":2: field 'B': no such column"),
        (
            HEADER + "q,x,y,A\nq,x,y\n",
            r":3: has 3 columns, the header has 4 \(question, A, B, answer\)",
        ),
        (HEADER + "q,x,y,z,A\n", r":2: has 5 columns, the header has 4"),
        (HEADER + 'q,x,y,A\n"q2,x,y,A\nq3,x,y,B\n', r":3: a quotation mark is not closed"),
        (
            HEADER + '"q,x,y,A\n' + "q,x,y,A\n" * 200_000,
            r":2: not valid CSV: field larger than field limit",
        ),
        (
            HEADER + "q,x,,A\nq,x,y,A\n",
            r":2: field 'B': must be a non-empty string \(value: ''\)",
        ),
        (HEADER + "q,x,y,\n", r":2: field 'answer': is neither"),
        (HEADER + ",x,y,A\n", r":2: field 'question': must be a non-empty string"),
    ],
)
def test_csv_files_that_are_refused(content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match="a.csv" + problem) as caught:
        _one_file(tmp_path / "a.csv")
    assert caught.value.exit_code == 2


def test_csv_in_another_encoding_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes((HEADER + "q,x,y,A\n国,x,y,A\n").encode("gb18030"))
    with pytest.raises(DataError, match=r"a.csv:3: is damaged or not UTF-8.*iconv -f GB18030"):
        _one_file(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"choices": [1, 2]},
            r"field 'choices': an option is empty or not a text \(option A\) \(value:"
            r" 1\).*as a text: \"1\"",
        ),
        (
            {"choices": ["x", None]},
            r"field 'choices': an option is empty or not a text \(option B\)",
        ),
        ({"choices": ["x", float("nan")]}, r"field 'choices': .*option B\) \(value: nan\)"),
        ({"choices": ["x", ["y"]]}, r"field 'choices': .*option B\) \(value: \['y'\]\)"),
        (
            {"choices": "x,y"},
            r"field 'choices': must be a list of 2 to 26 options \(value: 'x,y'\)",
        ),
        ({"choices": ["x"]}, r"field 'choices': must be a list of 2 to 26 options"),
        (
            {"question": float("nan")},
            r"field 'question': must be a non-empty string \(value: nan\)",
        ),
        ({"question": ["q"]}, r"field 'question': must be a non-empty string"),
        ({"question": {"stem": "q"}}, r"field 'question': must be a non-empty string"),
        ({"question": 12}, r"field 'question': must be a non-empty string .*as a text: \"12\""),
        ({"question": None}, r"field 'question': missing"),
        ({"topic": float("nan")}, r"field 'topic': must be a text or be omitted \(value: nan\)"),
        ({"topic": 3}, r"field 'topic': must be a text"),
        ({"answer": float("nan")}, r"field 'answer': is neither .*\(value: nan\)"),
        ({"answer": None}, r"field 'answer': is neither"),
    ],
)
def test_values_of_another_type_are_refused(row: Row, problem: str, tmp_path: Path) -> None:
    good = {"question": "q", "choices": ["x", "y"], "answer": 1, "topic": "t"}
    path = _jsonl(tmp_path / "a.jsonl", [good, good | row])
    with pytest.raises(DataError, match=rf"a.jsonl:2: {problem}"):
        _one_file(path, choices="choices", subject="topic")


def test_parquet_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"a.parquet: is a Git LFS pointer.*git lfs pull"):
        _one_file(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"a.parquet: cannot be read as Parquet"):
        _one_file(path)
    _parquet(path, [{"question": "q", "A": 1.0, "B": "y", "answer": "A"}])
    with pytest.raises(
        DataError, match=r"a.parquet:1: field 'A': must be a non-empty string .*\(value: 1.0\)"
    ):
        _one_file(path)


def test_parquet_columns_of_the_same_name_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = [pa.array(["q"]), pa.array(["x"]), pa.array(["y"]), pa.array(["A"])]
    parquet.write_table(
        pa.table(columns, names=["question", "A", "A", "answer"]), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=r"a.parquet: field 'A': names two columns"):
        _one_file(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ("configs: [", r"README.md: its YAML header cannot be read"),
        (
            "configs:\n- config_name: a\n  data_files:\n  - split: train",
            r"field 'configs': has a data file without split and path",
        ),
        (
            "configs:\n- config_name: a\n  data_files: '*.csv'",
            r"field 'configs': lists files for configuration 'a', but none",
        ),
        (
            "dataset_info:\n  features:\n  - name: q\n    dtype: nosuchtype",
            r"README.md: field 'dataset_info': cannot be read",
        ),
    ],
)
def test_a_readme_that_cannot_be_used(head: str, problem: str, tmp_path: Path) -> None:
    _jsonl(tmp_path / "train.jsonl", _numbered(medqa.EXAMPLE, 1))
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n")
    with pytest.raises(DataError, match=problem):
        _load("medqa", tmp_path)


def test_medmcqa_as_its_authors_published_it(tmp_path: Path) -> None:
    """`cop` counts from 1, and test has none."""
    unanswered = {key: value for key, value in medmcqa.EXAMPLE.items() if key not in ("cop", "exp")}
    for split, rows in {
        "train": _numbered(medmcqa.EXAMPLE, 12, cop=4),
        "dev": _numbered(medmcqa.EXAMPLE, 3, cop=1),
    }.items():
        _jsonl(tmp_path / f"{split}.json", rows)
    _jsonl(tmp_path / "test.json", _numbered(unanswered, 2))
    fields = {
        "choices": ["opa", "opb", "opc", "opd"],
        "answer": "cop",
        "answer_form": "index_from_1",
        "id": "id",
    }
    splits = {
        "dev": "train[:10]",
        "train": "train[10:]",
        "test": "validation",
    }  # as the hub calls a dev file
    found = _load("huggingface", tmp_path, domain="medicine", splits=splits, fields=fields)
    assert Counter((q.split, q.answer) for q in found) == {
        ("dev", 3): 10,
        ("train", 3): 2,
        ("test", 0): 3,
    }
    with pytest.raises(
        DataError,
        match=r"train.json:1: field 'cop': is out of range \(value: 4\).*answer_form: index_from_1",
    ):
        _load("medmcqa", tmp_path)


def test_a_text_in_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    texts = pa.array([b"good", b"\xff\xfe"]).cast(pa.binary()).view(pa.string())
    columns = {"question": texts, "A": ["x", "x"], "B": ["y", "y"], "answer": ["A", "A"]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet:2: is damaged: .*decode byte 0xff"):
        _one_file(tmp_path / "a.parquet")


def test_hidden_files_do_not_count_as_changed_data(tmp_path: Path) -> None:
    data = tmp_path / "data.git"
    data.mkdir()
    _medqa(data)
    raw = {"output_dir": "x", "questions": {"sources": [{"kind": "medqa", "path": str(data)}]}}
    before = input_digests(from_dict(raw))
    (data / ".git").mkdir()
    (data / ".git" / "index").write_text("changed by git status")
    assert input_digests(from_dict(raw)) == before
    (data / "phrases_no_exclude_test.jsonl").rename(data / "test.jsonl")
    assert input_digests(from_dict(raw)) != before
