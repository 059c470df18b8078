"""The published datasets: example rows, and each source read from local files."""

import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ift_scale.config import Source
from ift_scale.config.file import from_dict
from ift_scale.errors import DataError, Place
from ift_scale.questions import (
    arc,
    ceval,
    cmmlu,
    entity_questions,
    medmcqa,
    medqa,
    popqa,
    subjects,
    truthfulqa,
    xiezhi,
)
from ift_scale.questions.checks import choice_question, free_question
from ift_scale.questions.sources import DATASETS, PER_SUBJECT, load_source
from ift_scale.records import Question

Row = dict[str, Any]
PLACE = Place("example", 1)
MODULES = {
    "arc": arc,
    "ceval": ceval,
    "cmmlu": cmmlu,
    "entity_questions": entity_questions,
    "medmcqa": medmcqa,
    "medqa": medqa,
    "popqa": popqa,
    "truthfulqa": truthfulqa,
    "xiezhi": xiezhi,
}


def _source(kind: str, path: Path | str, **settings: Any) -> Source:
    """The source as in a configuration, next to a pool to train on."""
    raw = {
        "output_dir": "x",
        "questions": {
            "sources": [{"kind": "world"}, {"kind": kind, "path": str(path), **settings}]
        },
    }
    return from_dict(raw).questions.sources[1]


def _load(source: Source, seed: int = 0) -> list[Question]:
    return [question for _, question in load_source(source, seed)]


def _write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def _numbered(module: ModuleType, count: int, **changes: Any) -> list[Row]:
    """Returns the example row `count` times, with numbered question and id if it has one."""
    rows = [module.EXAMPLE | changes for _ in range(count)]
    return [
        row | {"question": f"{row['question']} {i}"} | ({"id": f"n{i}"} if "id" in row else {})
        for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("kind", "right", "num_choices"),
    [
        ("arc", "dry palms", 4),
        ("ceval", "3", 4),
        ("cmmlu", "大腿", 4),
        ("medmcqa", "Atrophy", 4),
        ("medqa", "Tell the attending that he cannot fail to disclose this mistake", 4),
        (
            "truthfulqa",
            "Nauru is the smallest country in the world that is at least one square mile in area.",
            4,
        ),
        ("xiezhi", "America", 4),
    ],
)
def test_the_example_row_of_a_choice_source(kind: str, right: str, num_choices: int) -> None:
    module = MODULES[kind]
    fields = module.fields(PLACE, module.EXAMPLE)
    question = choice_question(
        PLACE, fields, id="x", domain="d", subject="s", collection="pool", split="test"
    )
    assert question.answer is not None and question.choices[question.answer] == right
    assert len(question.choices) == num_choices


@pytest.mark.parametrize(
    ("kind", "aliases"),
    [
        ("entity_questions", ["Tinmel", "Marrakesh"]),
        ("popqa", ["politician", "political leader", "political figure", "polit.", "pol"]),
    ],
)
def test_the_example_row_of_a_free_source(kind: str, aliases: list[str]) -> None:
    module = MODULES[kind]
    fields = module.fields(PLACE, module.EXAMPLE)
    question = free_question(
        PLACE, fields, id="x", domain="d", subject="s", collection="benchmark", split="test"
    )
    assert (question.kind, question.choices, question.answer) == ("free", [], None)
    assert question.aliases == aliases


def test_every_source_has_an_example() -> None:
    assert set(MODULES) == {*DATASETS, *PER_SUBJECT, "xiezhi"}


def test_medmcqa_from_a_folder(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", _numbered(medmcqa, 14))
    _write(tmp_path / "validation.jsonl", _numbered(medmcqa, 3))
    questions = _load(_source("medmcqa", tmp_path))
    assert Counter(q.split for q in questions) == {"dev": 10, "train": 4, "test": 3}
    assert (
        questions[0].id == "medmcqa/medicine/dev/n0"
        and questions[10].id == "medmcqa/medicine/train/n10"
    )
    first = questions[0]
    assert (first.domain, first.subject, first.collection, first.answer) == (
        "medicine",
        "Anatomy",
        "pool",
        2,
    )
    assert first.explanation is not None and first.explanation.startswith("Chronic urethral")
    limited = _source("medmcqa", tmp_path, max_train=2, max_test=1)
    assert Counter(q.split for q in _load(limited)) == {"dev": 10, "train": 2, "test": 1}
    assert _load(limited, seed=3) == _load(limited, seed=3)


def test_medqa_from_one_compressed_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "us.jsonl.gz", _numbered(medqa, 12))
    splits = {"dev": "train[:5]", "train": "train[5:10]", "test": "train[10:]"}
    questions = _load(_source("medqa", path, splits=splits, domain="usmle"))
    assert Counter(q.split for q in questions) == {"dev": 5, "train": 5, "test": 2}
    assert questions[-1].domain == "usmle" and re.fullmatch(
        "medqa/usmle/test/[0-9a-f]{16}", questions[-1].id
    )


def test_arc_with_numbered_options(tmp_path: Path) -> None:
    rows = _numbered(arc, 11)
    rows[0] |= {
        "choices": {"text": ["wet", "dry", "warm"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    }
    for split in ("train", "validation", "test"):
        _write(tmp_path / f"{split}.jsonl", rows)
    questions = _load(_source("arc", tmp_path))
    assert Counter(q.split for q in questions) == {"dev": 10, "train": 11, "test": 11}
    assert (questions[0].answer, questions[0].choices) == (1, ["wet", "dry", "warm"])


def test_truthfulqa_is_shuffled_the_same_way_each_time(tmp_path: Path) -> None:
    _write(tmp_path / "validation.jsonl", _numbered(truthfulqa, 50))
    questions = _load(_source("truthfulqa", tmp_path), seed=0)
    assert questions == _load(_source("truthfulqa", tmp_path), seed=1)
    assert set(Counter(q.answer for q in questions)) == {0, 1, 2, 3}
    assert all(q.answer is not None and q.choices[q.answer].startswith("Nauru") for q in questions)
    assert Counter((q.collection, q.split) for q in questions) == {
        ("benchmark", "dev"): 10,
        ("benchmark", "test"): 40,
    }


def test_popqa_from_a_tsv_file(tmp_path: Path) -> None:
    rows = _numbered(popqa, 25)
    with (tmp_path / "test.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    questions = _load(_source("popqa", tmp_path / "test.tsv"))
    assert Counter((q.kind, q.collection, q.split) for q in questions) == {
        ("free", "benchmark", "dev"): 10,
        ("free", "benchmark", "test"): 15,
    }
    assert questions[0].aliases[0] == "politician"
    assert len({q.id.split("/")[-1] for q in questions}) == 25
    assert {q.id for q in questions} != {
        q.id for q in _load(_source("popqa", tmp_path / "test.tsv"), seed=1)
    }


def test_xiezhi_takes_any_label_and_four_options_only(tmp_path: Path) -> None:
    rows = [xiezhi.EXAMPLE | {"question": f"q{i}"} for i in range(270)]
    rows += [
        xiezhi.EXAMPLE | {"labels": ["Literature"]},
        xiezhi.EXAMPLE | {"options": "America\nFrance\nJapan"},
    ]
    path = _write(tmp_path / "xiezhi.v1.json", rows)
    left_out: Counter[str] = Counter()
    source = _source("xiezhi", path, domain="history", labels=["History", "Archaeology"])
    questions = [question for _, question in load_source(source, 0, left_out)]
    assert Counter(q.split for q in questions) == {"dev": 10, "train": 10, "test": 250}
    assert left_out == {"other labels": 1, "not four options": 1}
    assert all(
        q.id.startswith(f"xiezhi/history/{q.split}/") and q.domain == "history" for q in questions
    )
    named = _load(
        _source(
            "xiezhi", path, domain="all_of_it", splits={"dev": "train[:2]", "test": "train[260:]"}
        )
    )
    assert Counter(q.split for q in named) == {"dev": 2, "test": 11}


def test_a_chinese_xiezhi_row_ends_with_a_quotation_mark_too_many() -> None:
    row = {
        "question": "中国",
        "labels": ["历史学"],
        "answer": "①③④",
        "options": '①②③④\n②③④\n③④\n①③④"\n',
    }
    assert xiezhi.fields(PLACE, row)["choices"][-1] == "①③④"


def test_cmmlu_from_the_unpacked_archive(tmp_path: Path) -> None:
    for split, count in {"dev": 5, "test": 8}.items():
        for subject in ("anatomy", "chinese_history"):
            rows = [
                {"": i} | cmmlu.EXAMPLE | {"Question": f"问题 {i}", "A": "1.50", "B": "None"}
                for i in range(count)
            ]
            _write(tmp_path / split / f"{subject}.csv", rows)
    questions = _load(_source("cmmlu", tmp_path))
    assert Counter((q.subject, q.domain, q.split) for q in questions) == {
        ("anatomy", "medicine", "dev"): 5,
        ("anatomy", "medicine", "test"): 8,
        ("chinese_history", "history", "dev"): 5,
        ("chinese_history", "history", "test"): 8,
    }
    assert questions[0].choices == ["1.50", "None", "大腿", "小腿"] and questions[0].answer == 2
    assert (
        re.fullmatch("cmmlu/dev/anatomy/[0-9a-f]{16}", questions[0].id)
        and questions[0].collection == "benchmark"
    )
    few = _load(
        _source(
            "cmmlu",
            tmp_path,
            subjects=["anatomy"],
            max_per_subject=3,
            domains={"anatomy": "biology"},
        )
    )
    assert Counter((q.domain, q.split) for q in few) == {
        ("biology", "dev"): 5,
        ("biology", "test"): 3,
    }
    with pytest.raises(
        DataError, match=r"field 'subjects': no such subject .*known: anatomy, chinese_history"
    ):
        _load(_source("cmmlu", tmp_path, subjects=["virology"]))
    with pytest.raises(
        DataError,
        match=r"field 'domains': no such subject \(value: 'anatomi'\). did you mean 'anatomy'",
    ):
        _load(_source("cmmlu", tmp_path, domains={"anatomi": "medicine"}))
    _write(tmp_path / "test" / "driving.csv", [cmmlu.EXAMPLE])
    with pytest.raises(
        DataError,
        match=r"field 'domains': is not a known subject of cmmlu \(value: 'driving'\). Add"
        r" its domain",
    ):
        _load(_source("cmmlu", tmp_path, splits={"test": "test"}))
    (tmp_path / "dev" / "anatomy.csv").unlink()
    with pytest.raises(DataError, match=r"dev/anatomy.csv: no such file"):
        _load(_source("cmmlu", tmp_path))


def test_ceval_takes_val_because_test_has_no_answers(tmp_path: Path) -> None:
    for split, count in {"dev": 5, "val": 4}.items():
        _write(tmp_path / split / f"law_{split}.csv", _numbered(ceval, count))
    _write(tmp_path / "test" / "law_test.csv", _numbered(ceval, 2, answer=""))
    questions = _load(_source("ceval", tmp_path))
    assert Counter((q.subject, q.domain, q.split) for q in questions) == {
        ("law", "jurisprudence", "dev"): 5,
        ("law", "jurisprudence", "test"): 4,
    }
    with pytest.raises(
        DataError,
        match=r"law_test.csv:2: field 'answer': the answers of this split are not"
        r" public.*splits.test to val",
    ):
        _load(_source("ceval", tmp_path, splits={"dev": "dev", "test": "test"}))


def test_entity_questions_from_the_archive(tmp_path: Path) -> None:
    for split in ("dev", "train", "test"):
        for relation in ("P17", "P36"):
            path = tmp_path / split / f"{relation}.{split}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(_numbered(entity_questions, 3), indent=4))
    questions = _load(_source("entity_questions", tmp_path, max_per_subject=2))
    assert Counter((q.kind, q.subject, q.split) for q in questions) == {
        ("free", relation, split): (2 if split == "test" else 3)
        for relation in ("P17", "P36")
        for split in ("dev", "train", "test")
    }
    assert questions[0].id.startswith("entity_questions/dev/P17/") and questions[0].aliases == [
        "Tinmel",
        "Marrakesh",
    ]
    with pytest.raises(DataError, match=r"no file \*.test.json"):
        _load(_source("entity_questions", tmp_path / "dev"))


def test_any_dataset_of_free_questions(tmp_path: Path) -> None:
    _write(
        tmp_path / "train.jsonl",
        [{"q": f"q{i}", "right": ["a", "b"], "topic": "t"} for i in range(4)],
    )
    fields = {"question": "q", "aliases": "right", "subject": "topic"}
    splits = {"dev": "train[:1]", "test": "train[1:]"}
    source = _source(
        "huggingface",
        tmp_path,
        domain="facts",
        collection="benchmark",
        splits=splits,
        fields=fields,
    )
    questions = _load(source)
    assert [(q.kind, q.id.rpartition("/")[0], q.subject, q.aliases) for q in questions][:2] == [
        ("free", "facts/dev", "t", ["a", "b"]),
        ("free", "facts/test", "t", ["a", "b"]),
    ]


def test_mmlu_as_the_hub_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [
        {
            "question": f"q{i}",
            "subject": "anatomy",
            "choices": ["a", "b", "c", "d"],
            "answer": i % 4,
        }
        for i in range(6)
    ]
    asked = []

    def loaded(path: str, name: str | None) -> Any:
        asked.append((path, name))
        return {
            split: datasets.Dataset.from_list(rows)
            for split in ("auxiliary_train", "dev", "validation", "test")
        }

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    questions = _load(_source("mmlu", "cais/mmlu", max_per_subject=2))
    assert asked == [("cais/mmlu", "all")]
    assert Counter((q.domain, q.split) for q in questions) == {
        ("medicine", "dev"): 6,
        ("medicine", "test"): 2,
    }
    assert questions[1].id.startswith("mmlu/dev/anatomy/")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("medmcqa", ("openlifescienceai/medmcqa", None, {})),
        ("medqa", ("GBaker/MedQA-USMLE-4-options", None, {})),
        ("arc", ("allenai/ai2_arc", "ARC-Challenge", {})),
        ("truthfulqa", ("truthfulqa/truthful_qa", "multiple_choice", {})),
        ("popqa", ("akariasai/PopQA", None, {})),
        ("ceval", ("ceval/ceval-exam", "accountant", {})),
        (
            "cmmlu",
            (
                "haonan-li/cmmlu",
                None,
                {
                    "data_files": {
                        "dev": "agronomy/dev/*.parquet",
                        "test": "agronomy/test/*.parquet",
                    },
                    "revision": "refs/convert/parquet",
                },
            ),
        ),
    ],
)
def test_default_arguments_to_the_hub(
    kind: str, arguments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked = []

    def refused(path: str, name: str | None, **options: Any) -> Any:
        asked.append((path, name, options))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    raw = {"output_dir": "x", "questions": {"sources": [{"kind": "world"}, {"kind": kind}]}}
    problem = (
        f"{arguments[0]}: no such file or folder, and datasets cannot load it: no"
        f" network. Check the name, or download"
    )
    with pytest.raises(DataError, match=problem):
        _load(from_dict(raw).questions.sources[1])
    assert asked == [arguments]


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        (
            "medmcqa",
            {"cop": -1},
            r"train.jsonl:2: field 'cop': the answers of this split are not public \(value: -1\)",
        ),
        (
            "medmcqa",
            {"cop": 4},
            r"train.jsonl:2: field 'cop': is out of range \(value: 4\).*counts from"
            r" 1.*answer_form: index_from_1",
        ),
        ("medmcqa", {"opc": None}, r"train.jsonl:2: field 'opc': missing"),
        (
            "medqa",
            {"answer_idx": "E"},
            r"train.jsonl:2: field 'answer_idx': is not a letter from A to D \(value: 'E'\)",
        ),
        ("medqa", {"question": None}, r"train.jsonl:2: field 'question': missing"),
        (
            "arc",
            {"answerKey": "E"},
            r"train.jsonl:2: field 'answerKey': names none of the options A, B, C, D"
            r" \(value: 'E'\)",
        ),
        ("arc", {"choices": None}, r"train.jsonl:2: field 'choices.text': missing"),
        (
            "arc",
            {"choices": {"text": ["a", "b"], "label": ["A", "A"]}},
            r"train.jsonl:2: field 'choices.label': must have a different label for each of"
            r" the 2 options",
        ),
        (
            "arc",
            {"choices": {"text": ["a", "b"], "label": [1, 2]}},
            r"field 'choices.label': an option is empty or not a text .* 1\)",
        ),
        (
            "medqa",
            {"options": {"A": "a", "C": "c"}},
            r"field 'options': must have the letters A, B, C and so on",
        ),
        ("medqa", {"options": ["a", "b"]}, r"field 'options': must map letters to options"),
        (
            "medmcqa",
            {"opd": 4},
            r"train.jsonl:2: field 'opd': must be a non-empty string .*\(value: 4\)\. .*write"
            r" it as a text: \"4\"",
        ),
        (
            "medmcqa",
            {"exp": ["a"]},
            r"train.jsonl:2: field 'exp': must be a text or be omitted \(value: \['a'\]\)",
        ),
        (
            "medmcqa",
            {"subject_name": float("nan")},
            r"train.jsonl:2: field 'subject_name': must be a text.*\(value: nan\)",
        ),
        (
            "medmcqa",
            {"id": [1]},
            r"train.jsonl:2: field 'id': must be an integer or a text \(value: \[1\]\)",
        ),
        (
            "medmcqa",
            {"id": 1.5},
            r"train.jsonl:2: field 'id': must be an integer or a text \(value: 1.5\)",
        ),
        (
            "medmcqa",
            {"question": "a \ud800"},
            r"train.jsonl:2: field 'question': .* half of a surrogate pair",
        ),
        (
            "popqa",
            {"possible_answers": '["\\ud800"]'},
            r"train.jsonl:2: field 'aliases': .* half of a surrogate pair",
        ),
        ("xiezhi", {"question": 7}, r"train.jsonl:2: field 'question': must be a non-empty string"),
        (
            "truthfulqa",
            {"mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}},
            r"must mark one of the 2 options with 1",
        ),
        (
            "popqa",
            {"possible_answers": "[]"},
            r"field 'aliases': must be a list of one or more right answers",
        ),
        (
            "popqa",
            {"possible_answers": "pol"},
            r"field 'possible_answers': must be a JSON list as text",
        ),
        (
            "xiezhi",
            {"answer": "Rome"},
            r"train.jsonl:2: field 'answer': is not one of the options \(value: 'Rome'\)",
        ),
    ],
)
def test_bad_rows(kind: str, change: Row, problem: str, tmp_path: Path) -> None:
    rows = _numbered(MODULES[kind], 3)
    rows[1] |= change
    path = _write(tmp_path / "train.jsonl", rows)
    settings: Row = {"splits": {"test": "train"}} | ({"domain": "d"} if kind == "xiezhi" else {})
    with pytest.raises(DataError, match=problem):
        _load(_source(kind, path, **settings))


def test_a_missing_column_lists_the_existing_ones(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "train.jsonl", [{"question": "q", "answer_idx": "A", "choices": ["a", "b"]}]
    )
    with pytest.raises(
        DataError, match=r"field 'options': missing. .*The row has: answer_idx, choices, question"
    ):
        _load(_source("medqa", path, splits={"test": "train"}))


def _broken_json(folder: Path) -> Path:
    (folder / "train.jsonl").write_text('{"question": \n')
    return folder / "train.jsonl"


def _good(folder: Path) -> Path:
    return _write(folder / "a.jsonl", _numbered(medqa, 1))


def _text_file(folder: Path) -> Path:
    (folder / "train.txt").write_text("question")
    return folder / "train.txt"


@pytest.mark.parametrize(
    ("make", "splits", "problem"),
    [
        (
            _broken_json,
            {"test": "train"},
            r"train.jsonl:1: not valid JSON: Expecting value .*one object per line, or be one list",
        ),
        (
            _text_file,
            {"test": "train"},
            r"train.txt: has an unknown type. Known: .json, .jsonl, .csv",
        ),
        (
            lambda folder: folder / "absent.jsonl",
            {"test": "train"},
            r"absent.jsonl: no such file or folder",
        ),
        (_good, None, r"a.jsonl: has no split 'test'. Set splits.test: known: train"),
        (_good, {"test": "train[5"}, r"cannot take 'train\[5': Unrecognized"),
    ],
)
def test_unusable_files(
    make: Callable[[Path], Path], splits: Any, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=problem):
        _load(_source("medqa", make(tmp_path), splits=splits))


def test_the_subject_lists_are_whole() -> None:
    domains = {"medicine", "history", "engineering", "jurisprudence", "other"}
    for name, count in {"cmmlu_domains.json": 67, "ceval_domains.json": 52}.items():
        found = subjects.domains_file(name)
        assert len(found) == count and set(found.values()) == domains
