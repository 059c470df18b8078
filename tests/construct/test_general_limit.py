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
from ift_scale.errors import DataError
from ift_scale.pipeline import Pipeline
from ift_scale.records import Question, Score


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
