"""Assigns questions to HOMO, ID, OOD or a group of their own, for arms of any number of domains."""

import json
from pathlib import Path

import pytest

from ift_scale.config.file import from_dict
from ift_scale.errors import ConfigError
from ift_scale.evaluate.groups import is_asked
from ift_scale.io.files import read_jsonl
from ift_scale.io.progress import Bar
from ift_scale.questions import run as questions
from ift_scale.questions import world
from ift_scale.records import QUESTIONS_FILE, Arm, Question
from ift_scale.scoring.question_file import GroupKey, QuestionFile
from ift_scale.stage import Task
from ift_scale.treatments import POOLED

MEDICINE = Arm(domain="medicine", setting="harmonious", seed=0)
ACROSS = Arm(domain=POOLED, setting="harmonious", seed=0, domains=("medicine", "history"))


@pytest.mark.parametrize(
    ("arm", "domain", "collection", "group", "expected"),
    [
        (MEDICINE, "medicine", "pool", None, "HOMO"),
        (MEDICINE, "history", "pool", None, None),
        (MEDICINE, "medicine", "benchmark", None, "ID"),
        (MEDICINE, "other", "benchmark", None, "OOD"),
        (MEDICINE, "medicine", "benchmark", "chinese", "chinese"),
        (ACROSS, "medicine", "pool", None, "HOMO"),
        (ACROSS, "history", "pool", None, "HOMO"),
        (ACROSS, "engineering", "pool", None, None),
        (ACROSS, "history", "benchmark", None, "ID"),
        (ACROSS, "engineering", "benchmark", None, "OOD"),
        (ACROSS, "history", "benchmark", "chinese", "chinese"),
    ],
)
def test_groups_are_the_papers_and_those_of_benchmarks(
    arm: Arm, domain: str, collection: str, group: str | None, expected: str | None
) -> None:
    assert arm.test_group(domain, collection, group) == expected


def test_an_arm_is_asked_its_own_pools_test_and_all_of_the_benchmark() -> None:
    for arm, in_pools in (
        (Arm(domain="history", setting="harmonious", seed=0), 100),
        (ACROSS, 200),
    ):
        asked = [q for q in world.load() if is_asked(arm, False, GroupKey.of(q))]
        assert all(q.kind == "choice" and q.split == "test" for q in asked)
        assert (
            sum(q.collection == "pool" for q in asked) == in_pools
            and sum(q.collection == "benchmark" for q in asked) == 240
        )


def _benchmark(folder: Path, **settings: object) -> dict[str, object]:
    rows = [{"question": f"q{i}", "choices": ["a", "b"], "answer": 0} for i in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "kind": "huggingface",
        "path": str(folder / "rows.jsonl"),
        "domain": "medicine",
        "collection": "benchmark",
        "splits": {"test": "train"},
        **settings,
    }


def test_a_benchmark_as_a_group(tmp_path: Path) -> None:
    sources = [{"kind": "world"}, _benchmark(tmp_path, group="extra")]
    config = from_dict(
        {"output_dir": "x", "questions": {"sources": sources, "audit": {"near": False}}}
    )
    questions.gather(
        config, Task("questions", tmp_path / "out", "key", {}), Bar("questions", None, None)
    )
    written = read_jsonl(tmp_path / "out" / QUESTIONS_FILE, Question)
    assert {q.group for q in written if q.domain == "medicine" and q.question.startswith("q")} == {
        "extra"
    }
    assert sum(q.group == "extra" for q in written) == 3
    file = QuestionFile(tmp_path / "out" / QUESTIONS_FILE)
    rows = file.read(
        file.select(lambda key: is_asked(MEDICINE, False, key) and key.group == "extra")
    )
    assert [MEDICINE.test_group(q.domain, q.collection, q.group) for q in rows] == ["extra"] * 3


@pytest.mark.parametrize("name", ["HOMO", "ID", "OOD", "all", "pooled"])
def test_names_that_are_taken(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' .*; choose another"):
        from_dict(
            {
                "output_dir": "x",
                "questions": {"sources": [{"kind": "world"}, _benchmark(tmp_path, group=name)]},
            }
        )


def test_a_pool_is_no_group(tmp_path: Path) -> None:
    pool = _benchmark(tmp_path, group="extra", collection="pool")
    with pytest.raises(
        ConfigError, match=r"questions.sources.1.group: a pool's test group is always HOMO"
    ):
        from_dict({"output_dir": "x", "questions": {"sources": [{"kind": "world"}, pool]}})
