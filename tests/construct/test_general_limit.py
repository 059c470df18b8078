"""General instructions that do not suffice: limited sets if no size is set, else an early error."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift_scale.config.construct import ConstructConfig
from ift_scale.config.file import from_dict
from ift_scale.construct import general
from ift_scale.construct.domain import load
from ift_scale.construct.run import build
from ift_scale.errors import ConfigError, DataError
from ift_scale.pipeline import Pipeline
from ift_scale.records import Arm, Question, Score
from ift_scale.stage import Task


@given(st.integers(0, 2000), st.floats(0.01, 0.97))
def test_the_largest_set_is_the_largest(num_instructions: int, share: float) -> None:
    size = general.max_set_size(num_instructions, share)
    assert general.num_needed(size, share) <= num_instructions
    assert general.num_needed(size + 1, share) > num_instructions


def _settings(folder: Path, **construct: object) -> dict[str, object]:
    rows = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(7)]
    (folder / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = {"general": {"path": str(folder / "general.jsonl")}}
    return {
        "output_dir": str(folder / "run"),
        "questions": {"sources": [{"kind": "world"}]},
        "construct": {"settings": ["harmonious"], **file, **construct},
    }


def test_a_size_that_they_do_not_suffice_for_is_an_error_before_anything_starts(
    tmp_path: Path,
) -> None:
    pipeline = Pipeline(from_dict(_settings(tmp_path, size=20)))
    with pytest.raises(DataError, match=r"20 general instructions are required, but .* has 7"):
        pipeline.run()
    assert not (tmp_path / "run" / "questions").exists()
    Pipeline(from_dict(_settings(tmp_path, size=7))).context.stages["construct"].check(
        pipeline.context, "questions"
    )


def test_sets_of_no_given_size_are_as_large_as_they_suffice_for(
    domain: tuple[dict[str, Question], dict[str, Score]],
) -> None:
    questions, scores = domain
    config = ConstructConfig(settings=["harmonious", "incompatible"])
    whole = load("d", config, list(questions.values()), scores, {})
    limited = load("d", config, list(questions.values()), scores, {}, limit=10)
    assert whole.size > 10 and limited.size == 10
    assert len(limited.set_of("harmonious", 0, limited.size)) == 10


def test_general_only_has_the_general_instructions_of_the_other_sets(
    tmp_path: Path, domain: tuple[dict[str, Question], dict[str, Score]]
) -> None:
    questions, scores = domain
    names = ["general_only", "incompatible", "natural"]
    settings = _settings(tmp_path, settings=names, size=5)
    settings["construct"]["matching"] = {"letters": "reorder"}  # type: ignore[index]
    config = from_dict(settings)
    arms = [Arm(domain="d", setting=name, seed=seed) for name in names for seed in (0, 1)]
    task = Task("construct", tmp_path / "construct", "key", {}, None)
    build(config, task, arms, list(questions.values()), dict(scores), {})
    for seed in (0, 1):
        lines = {
            name: (tmp_path / "construct" / f"d-{name}-seed{seed}.jsonl").read_text().splitlines()
            for name in names
        }
        assert [len(lines[name]) for name in names] == [5, 10, 10]
        for name in names[1:]:
            general_lines = {
                line for line in lines[name] if json.loads(line)["meta"]["setting"] == "general"
            }
            assert set(lines["general_only"]) == general_lines
    balance = (tmp_path / "construct" / "balance.csv").read_text()
    assert "incompatible" in balance and "general_only" not in balance


def test_general_only_does_not_limit_the_size_and_needs_general_instructions(
    domain: tuple[dict[str, Question], dict[str, Score]],
) -> None:
    questions, scores = domain
    sizes = [
        load("d", ConstructConfig(settings=settings), list(questions.values()), scores, {}).size
        for settings in (["incompatible"], ["incompatible", "general_only"])
    ]
    assert sizes[0] == sizes[1]
    general = {"path": None, "share": 0}
    with pytest.raises(ConfigError, match="general_only has general instructions alone"):
        from_dict(
            {
                "output_dir": "runs/x",
                "construct": {"settings": ["general_only"], "general": general},
            }
        )
