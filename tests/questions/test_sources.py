"""Each question source on good and on bad input."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from ift_scale.config import HubFields, HubSource, MmluSource, PaperSource, Source
from ift_scale.errors import DataError
from ift_scale.questions import world
from ift_scale.questions.run import QuestionCounts
from ift_scale.questions.sources import load_source
from ift_scale.records import Question


def _load(source: Source, seed: int = 0) -> list[Question]:
    return [question for _, question in load_source(source, seed)]


def _paper(path: Path, **changes: object) -> PaperSource:
    return PaperSource(kind="paper", domain="engineering", path=str(path), **changes)


def _change(pool: Path, split: str, line: int, **changes: object) -> None:
    path = pool / f"{split}.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    rows[line - 1] = {k: v for k, v in (rows[line - 1] | changes).items() if v is not ...}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_paper_pool(pool: Path) -> None:
    questions = _load(_paper(pool))
    assert Counter(q.split for q in questions) == {"dev": 5, "train": 6, "test": 3}
    assert questions[0].id == "engineering/dev/0"
    assert questions[0].topic == "engineering"


def test_paper_pool_limited_the_same_for_the_same_seed(pool: Path) -> None:
    first = _load(_paper(pool, max_train=3), seed=1)
    assert [q.id for q in first] == [q.id for q in _load(_paper(pool, max_train=3), seed=1)]
    assert sum(q.split == "train" for q in first) == 3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answer": ...}, r"train.jsonl:2: field 'answer': missing"),
        ({"answer": 4}, r"train.jsonl:2: field 'answer': is out of range \(value: 4\)"),
        (
            {"answer": "E"},
            r"train.jsonl:2: field 'answer': is neither an option's index nor its letter"
            r" \(value: 'E'\)",
        ),
        ({"answer": True}, r"field 'answer': is neither"),
        ({"id": ...}, r"train.jsonl:2: field 'id': missing"),
        (
            {"choices": []},
            r"train.jsonl:2: field 'choices': must be a list of 2 to 26 options \(value: \[\]\)",
        ),
        ({"choices": ["a", " ", "c", "d"]}, r"train.jsonl:2: field 'choices': an option is empty"),
        ({"explanation": 7}, r"train.jsonl:2: field 'explanation': must be a text"),
        ({"question": ""}, r"train.jsonl:2: field 'question': must be a non-empty string"),
    ],
)
def test_bad_rows(pool: Path, changes: dict[str, object], problem: str) -> None:
    _change(pool, "train", 2, **changes)
    with pytest.raises(DataError, match=problem) as caught:
        _load(_paper(pool))
    assert caught.value.exit_code == 2


def test_answers_may_be_letters(pool: Path) -> None:
    _change(pool, "train", 2, answer="C")
    assert next(q for q in _load(_paper(pool)) if q.id == "engineering/train/1").answer == 2


def test_malformed_and_missing_files(pool: Path) -> None:
    with (pool / "train.jsonl").open("a") as file:
        file.write('{"id": 9, "question"\n')
    with pytest.raises(DataError, match=r"train.jsonl:7: not valid JSON"):
        _load(_paper(pool))
    (pool / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"no file train.jsonl or train.jsonl.gz"):
        _load(_paper(pool))
    with pytest.raises(DataError, match="no such folder"):
        _load(_paper(pool / "absent"))


def test_damaged_gzip(pool: Path) -> None:
    whole = gzip.compress((pool / "train.jsonl").read_bytes())
    (pool / "train.jsonl").unlink()
    (pool / "train.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train.jsonl.gz: is damaged"):
        _load(_paper(pool))


def test_real_pool(shared_data: Path) -> None:
    questions = _load(_paper(shared_data / "pools" / "engineering"))
    assert Counter(q.split for q in questions) == {"dev": 10, "train": 4829, "test": 250}


def test_real_mmlu_and_its_domains(shared_data: Path) -> None:
    questions = _load(MmluSource(kind="mmlu", path=str(shared_data / "mmlu")))
    tests = [q for q in questions if q.split == "test"]
    assert len(tests) == 14_042 and len({q.subject for q in tests}) == 57
    # The counts of the paper's ID groups.
    assert Counter(q.domain for q in tests if q.domain != "other") == {
        "medicine": 1640,
        "history": 930,
        "engineering": 145,
        "jurisprudence": 4840,
    }
    assert next(q for q in tests if q.subject == "abstract_algebra").topic == "abstract algebra"


def test_mmlu_limit_keeps_every_subject(shared_data: Path) -> None:
    questions = _load(MmluSource(kind="mmlu", path=str(shared_data / "mmlu"), max_per_subject=3))
    counts = Counter(q.subject for q in questions if q.split == "test")
    assert set(counts.values()) == {3} and len(counts) == 57


def test_mmlu_csv(tmp_path: Path) -> None:
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"anatomy_{split}.csv").write_text(
            '"Which, of these?",a,b,c,d,C\nSecond?,a,b,c,d,A\n'
        )
    questions = _load(MmluSource(kind="mmlu", path=str(tmp_path)))
    assert [(q.id.rpartition("/")[0], q.answer, q.domain) for q in questions][:2] == [
        ("mmlu/dev/anatomy", 2, "medicine"),
        ("mmlu/dev/anatomy", 0, "medicine"),
    ]
    (tmp_path / "test" / "anatomy_test.csv").write_text("Only,three,columns\n")
    with pytest.raises(
        DataError, match=r"anatomy_test.csv:1: must have the 6 columns question, A, B, C, D, answer"
    ):
        _load(MmluSource(kind="mmlu", path=str(tmp_path)))


@pytest.mark.parametrize(
    ("subject", "problem"),
    [
        ("anatomi", r"unknown subject .*did you mean 'anatomy'"),
        (None, "missing"),
        (float("nan"), r"unknown subject \(value: nan\)"),
    ],
)
def test_mmlu_unknown_subject(subject: object, problem: str, tmp_path: Path) -> None:
    row = {"id": 1, "subject": subject, "question": "q", "choices": ["a", "b"], "answer": 0}
    for split in ("dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"dev.jsonl:1: field 'subject': {problem}"):
        _load(MmluSource(kind="mmlu", path=str(tmp_path)))


def _hub(path: Path, **changes: object) -> HubSource:
    settings = {
        "kind": "huggingface",
        "path": str(path),
        "domain": "science",
        "splits": {"train": "train", "dev": "train", "test": "train"},
        "fields": HubFields(question="stem", choices="options.text", answer="key"),
    }
    return HubSource(**(settings | changes))


def test_hugging_face_dataset_from_a_local_path(tmp_path: Path) -> None:
    rows = [{"stem": f"q{i}", "options": {"text": ["a", "b", "c"]}, "key": "B"} for i in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = _load(_hub(tmp_path))
    assert questions[0].id.startswith("science/train/")
    assert [(q.answer, q.choices) for q in questions][:1] == [(1, ["a", "b", "c"])]
    with pytest.raises(DataError, match=r"has no split 'valid'.*known: train"):
        _load(_hub(tmp_path, splits={"dev": "valid"}))
    with pytest.raises(DataError, match=r"no such column.*did you mean 'stem'"):
        _load(
            _hub(tmp_path, fields=HubFields(question="sten", choices="options.text", answer="key"))
        )
    with pytest.raises(DataError, match="no such file or folder"):
        _load(_hub(tmp_path / "absent"))


def test_a_corrupt_gzip_body(pool: Path) -> None:
    whole = bytearray(gzip.compress((pool / "train.jsonl").read_bytes()))
    whole[15:30] = b"\xff" * 15
    (pool / "train.jsonl").unlink()
    (pool / "train.jsonl.gz").write_bytes(bytes(whole))
    with pytest.raises(DataError, match=r"train.jsonl.gz: is damaged"):
        _load(_paper(pool))


def test_a_pool_without_a_split_is_refused(pool: Path) -> None:
    tally = QuestionCounts()
    for question in _load(_paper(pool)):
        if question.split != "test":
            tally.add(question)
    with pytest.raises(
        DataError, match="domain 'engineering': field 'split': its pool has no test question"
    ):
        tally.check_pools(("train", "test"))
    (pool / "test.jsonl").write_text("")
    with pytest.raises(DataError, match=r"test.jsonl: contains no rows"):
        _load(_paper(pool))


def test_world_questions() -> None:
    questions = world.load()
    choice = [q for q in questions if q.kind == "choice"]
    assert len({q.id for q in questions}) == len(questions)
    assert len({q.domain for q in choice}) == 4
    assert any(q.kind == "free" and q.aliases and not q.choices for q in questions)
    pools = Counter((q.collection, q.split) for q in choice)
    assert (
        pools[("pool", "train")] == 640
        and pools[("pool", "test")] == 400
        and pools[("benchmark", "test")] == 240
    )
