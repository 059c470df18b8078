"""The paper's rules on the released sets: violations are listed, and such sets are refused."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ift_scale.cli import main
from ift_scale.config import Config
from ift_scale.construct import official, official_facts, official_rules
from ift_scale.construct import run as construct
from ift_scale.errors import DataError
from ift_scale.io.files import read_jsonl
from ift_scale.io.manifests import read_manifest
from ift_scale.pipeline import Pipeline
from ift_scale.probe.run import ProbeStage
from ift_scale.records import Arm, Example
from ift_scale.stage import Task
from ift_scale.train.run import live_source

Rows = dict[str, list[dict[str, Any]]]


def _row(id: int, **changes: Any) -> dict[str, Any]:
    """The model predicts A, with 0.7; the answer is B."""
    row = {
        "id": id,
        "question": f"Question {id}?",
        "choices": [f"a{id}", f"b{id}", f"c{id}"],
        "answer": 1,
        "explanation": "Thus.",
    }
    row |= {
        "correct": False,
        "pred": 0,
        "probs": [0.7, 0.2, 0.1],
        "golden_prob": 0.2,
        "pred_prob": 0.7,
        "output": 1,
    }
    return row | changes


def _right(id: int, **changes: Any) -> dict[str, Any]:
    return _row(id, **{"answer": 0, "correct": True, "golden_prob": 0.7, "output": 0} | changes)


def _sets() -> Rows:
    return {
        "harmonious": [_right(1), _right(2), _right(3)],
        "incompatible": [_row(4), _row(5), _row(6)],
        "self_aligning": [_row(id, output=0, model_exp="So.") for id in (4, 5, 6)],
    }


def _write(folder: Path, sets: Rows) -> Path:
    for setting, rows in sets.items():
        path = folder / "engineering" / f"{official.FILES[setting]}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _breaches(folder: Path) -> list[str]:
    return [str(breach) for breach in official_rules.breaches(official.load(folder)["engineering"])]


def test_sets_that_keep_the_rules(tmp_path: Path, shared_data: Path) -> None:
    assert _breaches(_write(tmp_path / "llama", _sets())) == []
    result = CliRunner().invoke(main, ["official", str(tmp_path / "llama")])
    assert (
        result.exit_code == 0
        and "  harmonious     3      100%                  0.70000          0.700" in result.output
    )
    # So do the authors' own of LLaMA-2-7B and 13B, as far as we have them.
    folders = official.models(shared_data / "official_groups")
    official_rules.check({folder: official.load(folder) for folder in folders})
    least = {
        m.name: min(
            f.smallest_confidence
            for i in official_facts.invariants(official.load(m)).values()
            for f in i.sets.values()
        )
        for m in folders
    }
    assert all(0.5 < confidence < 0.502 for confidence in least.values()) and len(least) == 2


FILE_H, FILE_I, FILE_S = official.FILES.values()


@pytest.mark.parametrize(
    ("setting", "number", "row", "expected"),
    [
        (
            "harmonious",
            1,
            _row(2),
            [f"1 row of harmonious are predicted wrongly ({FILE_H}.jsonl:2)"],
        ),
        (
            "incompatible",
            2,
            _right(6),
            [
                "1 row of incompatible are predicted correctly",
                "have a question that is not in incompatible",
            ],
        ),
        (
            "harmonious",
            0,
            _right(1, correct=False),
            ["have a value of `correct` that contradicts `pred` and `answer`"],
        ),
        (
            "harmonious",
            0,
            _right(1, probs=[0.5, 0.3, 0.2], pred_prob=0.5, golden_prob=0.5),
            ["have a confidence of at most 0.5"],
        ),
        (
            "harmonious",
            0,
            _right(1, probs=[0.3, 0.6, 0.1], pred_prob=0.3, golden_prob=0.3),
            ["at most 0.5", "not the most likely"],
        ),
        ("harmonious", 0, _right(1, pred_prob=0.8), ["have probabilities that contradict `probs`"]),
        ("harmonious", 0, _right(1, output=2), ["have an output other than the answer"]),
        (
            "self_aligning",
            0,
            _row(4, output=1, model_exp="So."),
            ["have an output other than the model's prediction"],
        ),
        (
            "harmonious",
            2,
            _right(5),
            [
                "1 row of harmonious share their question with incompatible",
                "share their question with self_aligning",
            ],
        ),
        (
            "harmonious",
            2,  # the same content under another id: case, blanks and the order of options aside
            _right(9, question="question  5?", choices=["C5", "a5", "b5"]),
            [
                "1 row of harmonious share their question with incompatible",
                "share their question with self_aligning",
            ],
        ),
        (
            "self_aligning",
            1,
            _row(7, output=0, model_exp="So."),
            [
                f"1 row of self_aligning have a question that is not in incompatible "
                f"({FILE_S}.jsonl:2)",
                f"1 row of incompatible have a question that is not in self_aligning "
                f"({FILE_I}.jsonl:2)",
            ],
        ),
        (
            "self_aligning",
            1,
            _row(5, answer=2, golden_prob=0.1, output=0, model_exp="So."),
            ["a question that is not in incompatible", "a question that is not in self_aligning"],
        ),
        (
            "self_aligning",
            1,
            _row(5, probs=[0.1, 0.2, 0.7], golden_prob=0.2, pred=2, output=2, model_exp="So."),
            [
                "1 row of self_aligning have a prediction other than that of the same question "
                "in incompatible"
            ],
        ),
        (
            "harmonious",
            2,
            None,
            ["the sets differ in size: harmonious 2, incompatible 3, self_aligning 3"],
        ),
    ],
)
def test_each_broken_rule(
    setting: str, number: int, row: dict[str, Any] | None, expected: list[str], tmp_path: Path
) -> None:
    sets = _sets()
    sets[setting][number : number + 1] = [row] if row else []
    found = _breaches(_write(tmp_path, sets))
    assert len(found) >= len(expected)
    for text in expected:
        assert sum(text in breach for breach in found) == 1, found


def test_the_command_lists_all_and_exits_with_2(tmp_path: Path) -> None:
    sets = _sets()
    sets["harmonious"] = [_row(1), _row(2), _row(3), _row(8), _row(9)]
    _write(tmp_path / "llama", sets)
    result = CliRunner().invoke(main, ["official", str(tmp_path / "llama")])
    assert result.exit_code == 2 and "llama engineering: H right and above 0.5: NO" in result.output
    assert (
        f"5 rows of harmonious are predicted wrongly ({FILE_H}.jsonl:1, {FILE_H}.jsonl:2, "
        f"{FILE_H}.jsonl:3 and 2 more)" in result.output
    )
    assert (
        f"{tmp_path / 'llama' / 'engineering'}: the sets differ in size: harmonious 5"
        in result.output
    )


def _config(folder: Path, pool: Path, sets: Path) -> Config:
    construct = {"official": str(sets), "general": {"path": None, "share": 0}}
    sources = [{"kind": "paper", "domain": "engineering", "path": str(pool)}]
    return Config.model_validate(
        {"output_dir": str(folder), "questions": {"sources": sources}, "construct": construct}
    )


def test_sets_are_built_without_probe_and_written_texts(tmp_path: Path, pool: Path) -> None:
    pipeline = Pipeline(_config(tmp_path / "run", pool, _write(tmp_path / "llama", _sets())))
    pipeline.make("questions")
    pipeline.make("construct")
    assert not (tmp_path / "run" / "probe").exists() and not (tmp_path / "run" / "write").exists()
    manifest = read_manifest(tmp_path / "run" / "construct")
    assert manifest and set(manifest.inputs) == {"questions", "official"}
    rows = read_jsonl(
        tmp_path / "run" / "construct" / "engineering-self_aligning-seed0.jsonl", Example
    )
    assert sorted(row.messages[1].content for row in rows) == ["A. a4", "A. a5", "A. a6"]
    assert (
        len(pipeline.context.tasks("train")) == 3
    )  # training needs neither of them, and does without live knowledge
    assert live_source(pipeline.context) is None
    (tmp_path / "run" / "probe").mkdir()
    (tmp_path / "run" / "probe" / "probe.parquet").touch()
    assert live_source(pipeline.context) is not None


def test_a_shuffled_release_gives_the_same_files_byte_for_byte(tmp_path: Path) -> None:
    def files(name: str, order: random.Random | None) -> dict[str, str]:
        draw = random.Random(0)
        known = {id: 0.5 + 0.5 * draw.random() for id in range(60)}

        def row(id: int, **changes: Any) -> dict[str, Any]:
            other = 1 - known[id]
            sure = {
                "probs": [known[id], other, 0.0],
                "pred_prob": known[id],
                "question": f"Question {id}" + "?" * (id % 7),
            }
            right = id >= 30
            return (_right if right else _row)(
                id, **sure, golden_prob=known[id] if right else other, **changes
            )

        sets = {
            "harmonious": [row(id) for id in range(30, 60)],
            "incompatible": [row(id) for id in range(30)],
        }
        sets["self_aligning"] = [row(id, output=0, model_exp="So.") for id in range(30)]
        for rows in sets.values() if order else ():
            order.shuffle(rows)
        config = _config(tmp_path / name, tmp_path, _write(tmp_path / name / "llama", sets))
        arms = [
            Arm(domain="engineering", setting=setting, seed=seed)
            for setting in sets
            for seed in (0, 1)
        ]
        construct.build(
            config, Task("construct", tmp_path / name / "construct", "key", {}), arms, [], {}, {}
        )
        manifest = read_manifest(tmp_path / name / "construct")
        assert manifest is not None
        return manifest.files

    found = files("a", None)
    assert len(found) == 7 and all(
        files(f"b{seed}", random.Random(seed)) == found for seed in range(3)
    )


def test_sets_that_break_a_rule_are_refused_before_the_probe(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = _sets()
    sets["harmonious"][1] = _row(2)
    pipeline = Pipeline(_config(tmp_path / "run", pool, _write(tmp_path / "llama", sets)))
    monkeypatch.setattr(ProbeStage, "run", lambda *_: pytest.fail("probed"))
    with pytest.raises(
        DataError,
        match=r"violations of the paper's rules \(1\):\n"
        r".*engineering: 1 row of harmonious are predicted wrongly",
    ):
        pipeline.run()
    with pytest.raises(DataError, match="paper's rules"):
        pipeline.make("construct")
    assert not (tmp_path / "run" / "construct").exists()
