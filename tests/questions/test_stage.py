"""The stage as a whole: one pass, counts, and repeated ids."""

import json
from pathlib import Path

import pytest

from ift_scale.config import Config
from ift_scale.config.file import from_dict
from ift_scale.errors import DataError
from ift_scale.io.files import read_jsonl
from ift_scale.io.manifests import read_manifest
from ift_scale.io.progress import Bar
from ift_scale.questions import duplicates, run, sources
from ift_scale.questions.checks import choice_question
from ift_scale.records import QUESTIONS_FILE, Question
from ift_scale.stage import Task


def _config(*described: dict[str, object]) -> Config:
    return from_dict({"output_dir": "x", "questions": {"sources": list(described)}})


def _run(folder: Path, *sources: dict[str, object]) -> list[Question]:
    run.gather(
        _config(*sources), Task("questions", folder, "key", {}), Bar("questions", None, None)
    )
    return read_jsonl(folder / QUESTIONS_FILE, Question)


def _pool(pool: Path, domain: str = "engineering") -> dict[str, object]:
    return {"kind": "paper", "domain": domain, "path": str(pool)}


def test_sources_are_written_in_order_with_their_counts(pool: Path, tmp_path: Path) -> None:
    questions = _run(tmp_path / "out", _pool(pool), _pool(pool, "history"))
    assert [q.id for q in questions[:6]] == [f"engineering/dev/{i}" for i in range(5)] + [
        "engineering/train/0"
    ]
    assert [q.domain for q in questions] == ["engineering"] * 14 + ["history"] * 14
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    counts = {
        name: count
        for name, count in manifest.counts.items()
        if not name.startswith("duplicates: ")
    }
    assert counts == {"pool/dev/choice": 10, "pool/train/choice": 12, "pool/test/choice": 6}
    assert manifest.counts["duplicates: engineering test in history test"] == 3


def test_a_row_is_written_before_the_next_is_read(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noted(*args: object, **fields: object) -> Question:
        read.append(str(fields["id"]))
        return choice_question(*args, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr("ift_scale.questions.paper.choice_question", noted)
    stream = sources.placed(_config(_pool(pool)))
    for expected in range(1, 8):
        next(stream)
        assert len(read) == expected


def test_a_repeated_id_in_a_file(pool: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (pool / "train.jsonl").read_text().splitlines()]
    rows[4]["id"] = rows[1]["id"]
    (pool / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError,
        match=r"train.jsonl:5: field 'id': already used at .*train.jsonl:2 \(value:"
        r" 'engineering/train/1'",
    ):
        _run(tmp_path / "out", _pool(pool))
    assert not (tmp_path / "out").exists()


def test_an_id_that_two_sources_give(pool: Path, tmp_path: Path) -> None:
    problem = (
        r"two sources give the same id \(value: 'engineering/dev/0'\)."
        r" questions.sources.0 and .1 have the same domain"
    )
    with pytest.raises(DataError, match=problem):
        _run(tmp_path / "out", _pool(pool), _pool(pool))


def test_two_ids_of_one_hash_are_no_duplicates(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_hash", lambda id: 7)
    assert len(_run(tmp_path / "out", _pool(pool))) == 14


def test_a_pool_of_free_questions_is_not_one_to_train_on(tmp_path: Path) -> None:
    from ift_scale.errors import ConfigError

    with pytest.raises(ConfigError, match="none of them is a pool to train on"):
        _config({"kind": "popqa", "collection": "pool"})
