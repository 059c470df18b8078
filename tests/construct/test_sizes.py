"""Smaller sets are nested parts of the whole one, with nearly its shares."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ift_scale.config.file import from_dict
from ift_scale.construct.arms import arms_of
from ift_scale.construct.run import build
from ift_scale.errors import DataError
from ift_scale.records import Question, Score
from ift_scale.scoring.question_file import GroupKey
from ift_scale.stage import Task

Domain = tuple[dict[str, Question], dict[str, Score]]
POOL = [GroupKey("choice", "pool", "d", "d", "train", 4)]


def _sets(folder: Path, domain: Domain, **construct: Any) -> dict[str, list[str]]:
    """Returns the lines of each setting's set."""
    questions, scores = domain
    general = folder.with_suffix(".jsonl")
    rows = [{"instruction": f"Do {i}.", "output": f"Done {i}."} for i in range(300)]
    general.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"general": {"path": str(general)}} | construct
    config = from_dict({"output_dir": str(folder), "construct": settings})
    arms = arms_of(config, POOL)
    task = Task("construct", folder, "key", {})
    build(config, task, arms, list(questions.values()), scores, {})
    return {arm.setting: (folder / f"{arm.name}.jsonl").read_text().splitlines() for arm in arms}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"matching": {"letters": "selection"}, "settings": ["harmonious", "incompatible"]},
    ],
)
def test_a_smaller_set_is_part_of_every_larger_one(
    tmp_path: Path, domain: Domain, more: dict[str, Any]
) -> None:
    settings = ["harmonious", "incompatible", "natural", "general_only", "discard_unknown"]
    of_all = {"settings": settings, "consistency_ratios": [0.3], "size": 100, "sizes": [20, 60]}
    sets = _sets(tmp_path / "run", domain, **of_all | more)
    whole = [setting for setting in sets if "size" not in setting]
    assert len(sets) == 3 * len(whole) >= 9
    for setting in whole:
        small, middle, all_of_it = (
            sets[name] for name in (f"{setting}-size-20", f"{setting}-size-60", setting)
        )
        assert 0 < len(small) < len(middle) < len(all_of_it)
        # In the same order, so a smaller set is what is left of a larger one.
        assert small == [line for line in middle if line in set(small)]
        assert middle == [line for line in all_of_it if line in set(middle)]
        for lines, size in ((small, 20), (middle, 60), (all_of_it, 100)):
            metas = [json.loads(line)["meta"] for line in lines]
            num_questions = sum(meta["wording"] != "general" for meta in metas)
            if setting == "general_only":
                assert (num_questions, len(lines)) == (0, size)
            elif setting != "discard_unknown":
                assert (num_questions, len(lines)) == (size, 2 * size)


def test_shares_of_what_is_taught_are_those_of_the_whole_set(
    tmp_path: Path, domain: Domain
) -> None:
    sets = _sets(
        tmp_path / "run",
        domain,
        settings=["natural"],
        consistency_ratios=[0.3],
        size=100,
        sizes=[20],
        matching={"letters": "reorder"},
    )
    for setting in ("mixture-0.3", "natural"):
        for name in ("consistent", "target"):
            counts = [
                Counter(str(json.loads(line)["meta"].get(name)) for line in sets[s])
                for s in (setting, f"{setting}-size-20")
            ]
            for value in (v for v in counts[0] if v != "None"):
                assert abs(counts[1][value] - counts[0][value] / 5) <= 2, (setting, name, value)
    mixed = [json.loads(line)["meta"].get("consistent") for line in sets["mixture-0.3-size-20"]]
    assert (mixed.count(True), mixed.count(False)) == (6, 14)


def test_a_size_that_is_not_smaller_is_refused(tmp_path: Path, domain: Domain) -> None:
    with pytest.raises(DataError, match=r"construct.sizes: is not below the \d+ questions of a wh"):
        _sets(tmp_path / "run", domain, settings=["natural"], sizes=[5000])
