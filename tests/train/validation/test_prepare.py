"""Validation examples before the ranks start: the draw, the file, the schedule and bad input."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift_scale.config import Config
from ift_scale.config.file import from_dict
from ift_scale.config.train import settings_of_result
from ift_scale.errors import ConfigError, DataError
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Arm
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.cache import tokenized
from ift_scale.train.job import ArmJob, trained_lengths, training_examples
from ift_scale.train.measurement import schedule
from ift_scale.train.model.path import TrainingPath
from ift_scale.train.validation import prepare, split
from tests.train.validation import examples


def _config(folder: Path, **validation: Any) -> Config:
    train = {"global_batch_size": 8, "max_length": 128, "epochs": 2, "validation": validation}
    return from_dict({"output_dir": str(folder), "train": train})


def _arm(path: Path, config: Config, model: Path, seed: int = 0) -> ArmJob:
    tokens = tokenized(path, path.parent, PromptTokenizer(model), config)
    arm = Arm(domain="d", setting="harmonious", seed=seed)
    return ArmJob(arm=arm, source=str(path), tokens=str(tokens), folder="", key="", inputs={})


def _prepared(config: Config, model: Path, *paths: Path) -> list[ArmJob]:
    arms = [_arm(path, config, model, seed) for seed, path in enumerate(paths)]
    return prepare.with_validation(arms, config, paths[0].parent, PromptTokenizer(model), 96)


def test_the_same_examples_are_held_out_in_any_order_and_duplicates_together(
    tmp_path: Path,
) -> None:
    rows = [examples.row(i) for i in range(400)]
    rows += rows[:100]
    order = np.random.default_rng(0).permutation(len(rows))
    found = []
    for name, numbers in (("a", range(len(rows))), ("b", order.tolist())):
        path = examples.write(tmp_path / f"{name}.jsonl", [rows[i] for i in numbers])
        chosen = split.held_out(path, 0.2)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        found.append({list(numbers)[i] for i in chosen})
    assert found[0] == found[1]
    assert {i for i in found[0] if i < 100} == {i - 400 for i in found[0] if i >= 400}
    assert 50 < len([i for i in found[0] if i < 400]) < 110
    larger = split.held_out(tmp_path / "a.jsonl", 0.5)
    assert found[0] < set(larger.tolist())  # draws of several shares are nested


@pytest.mark.parametrize(
    ("share", "match"),
    [(1e-9, r"holds out none of the 30 .*Raise"), (1 - 1e-9, r"holds out all of the 30 .*Lower")],
)
def test_a_share_that_leaves_nothing_is_refused(tmp_path: Path, share: float, match: str) -> None:
    path = examples.write(tmp_path / "a.jsonl", [examples.row(i) for i in range(30)])
    with pytest.raises(DataError, match=match):
        split.held_out(path, share)


def test_a_share_that_leaves_less_than_a_step_is_refused(tmp_path: Path, world_model: Path) -> None:
    path = examples.write(tmp_path / "a.jsonl", [examples.row(i) for i in range(12)])
    with pytest.raises(DataError, match=r"a.jsonl: \d examples, after \d+ are held out .* = 8\."):
        _prepared(_config(tmp_path, share=0.7), world_model, path)


def test_a_share_is_not_trained_on(tmp_path: Path, world_model: Path) -> None:
    path = examples.write(tmp_path / "a.jsonl", [examples.row(i) for i in range(60)])
    one, two = _prepared(_config(tmp_path, share=0.25, every=3), world_model, path, path)
    assert one.validation == two.validation and one.validation is not None
    tokens = dataset.load(Path(one.tokens))
    trained, measured = training_examples(one, 60), one.validation.examples(tokens)
    assert sorted([*trained, *measured]) == list(range(60)) and 5 < len(measured) < 30
    assert trained_lengths(one).tolist() == tokens.computed_lengths[trained].tolist()
    # The steps are those of a set that contains these examples only.
    rest = [row for i, row in enumerate(map(examples.row, range(60))) if i in set(trained)]
    config = _config(tmp_path)
    (plain,) = _prepared(config, world_model, examples.write(tmp_path / "b.jsonl", rest))
    steps, others = (
        packing.planned_steps(lengths, config.train, 2, 96, seed=3, chosen=chosen)
        for lengths, chosen in (
            (tokens.computed_lengths, trained),
            (trained_lengths(plain), None),
        )
    )
    numbers = {number: place for place, number in enumerate(trained.tolist())}
    assert [
        [[[numbers[i] for i in bin] for bin in micro] for micro in step] for step in steps
    ] == others


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.integers(1, 60), st.integers(1, 5))
def test_automatic_measures_each_epoch_and_otherwise_within_the_budget(
    cost: float, arm_cost: float, epoch_steps: int, epochs: int
) -> None:
    num_steps = epochs * epoch_steps
    every = schedule.at_least_each_epoch(cost, arm_cost, num_steps, epoch_steps)
    assert 1 <= every <= epoch_steps
    share = schedule.share_of(every, cost, arm_cost, num_steps)
    assert every == epoch_steps or share <= schedule.BUDGET * (1 + 1e-9)
    if every > 1:
        assert schedule.share_of(every - 1, cost, arm_cost, num_steps) > schedule.BUDGET


def test_a_file_of_any_format_is_measured(
    tmp_path: Path, world_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = examples.write(tmp_path / "a.jsonl", [examples.row(i) for i in range(20)])
    other = tmp_path / "validation.json"
    alpaca = [{"instruction": f"Name {i}", "input": "", "output": "mint"} for i in range(5)]
    other.write_text(json.dumps(alpaca))
    (arm,) = _prepared(_config(tmp_path, path=str(other)), world_model, path)
    assert arm.validation is not None and arm.validation.held_out is None
    tokens = dataset.load(Path(arm.validation.tokens))
    assert arm.validation.examples(tokens).tolist() == list(range(5))
    assert len(training_examples(arm, 20)) == 20
    printed = capsys.readouterr().out
    assert "format alpaca, 5 examples" in printed and "5 examples of the validation file" in printed


def test_bad_files_are_refused(tmp_path: Path, world_model: Path) -> None:
    path = examples.write(tmp_path / "a.jsonl", [examples.row(i) for i in range(20)])
    other = tmp_path / "v.jsonl"
    config = _config(tmp_path, path=str(examples.write(other, [])))
    with pytest.raises(DataError, match=r"v.jsonl: has no example"):
        _prepared(config, world_model, path)

    rows = [examples.row(i) for i in (100, 7, 101, 7, 9)]
    examples.write(other, rows)
    shared = r"v.jsonl:2: 3 of the 5 validation examples are also .*a.jsonl, this one in line 8\."
    with pytest.raises(DataError, match=shared):
        _prepared(config, world_model, path)

    long = {
        "messages": [{"role": "user", "content": "a " * 300}, {"role": "assistant", "content": "b"}]
    }
    other.write_text("\n" + json.dumps(examples.row(100)) + "\n\n" + json.dumps(long) + "\n")
    with pytest.raises(DataError, match=r"v.jsonl:4: field 'messages': \d+ tokens, over 128"):
        _prepared(config, world_model, path)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"share": 0.1, "path": "CHANGELOG.md"}, "share = 0.1 and path = .* are both set; remove"),
        ({"keep_best": True}, "keep_best: needs validation examples; set train.validation.share"),
        ({"early_stopping": {}}, "early_stopping: needs validation examples"),
        ({"path": "none.jsonl"}, "path: no such file .*none.jsonl"),
        ({"share": 1.0}, "train.validation.share"),
        ({"share": 0.1, "every": 0}, "train.validation.every"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        _config(tmp_path, **settings)
    assert len(re.findall(r"^  - ", str(caught.value), re.MULTILINE)) <= 2


def test_a_model_that_evaluation_changes_is_refused(tmp_path: Path) -> None:
    config = _config(tmp_path, share=0.1)
    with pytest.raises(ConfigError, match=r"train.validation: no validation loss: the model's"):
        prepare.check_path(TrainingPath(name="padded", evaluates=False), config.train)
    prepare.check_path(TrainingPath(name="padded"), config.train)
    prepare.check_path(TrainingPath(name="padded", evaluates=False), _config(tmp_path).train)


def test_the_key_depends_on_what_validation_changes(tmp_path: Path) -> None:
    file = str(examples.write(tmp_path / "v.jsonl", [examples.row(0)]))

    def key(**validation: Any) -> dict[str, Any]:
        return settings_of_result(_config(tmp_path, **validation).train)

    plain = key()
    assert "validation" not in plain
    assert key(path=file) == key(path=file, every=3) == plain
    assert key(share=0.1) == key(share=0.1, every=3) != plain
    assert key(share=0.2) != key(share=0.1)
    assert key(share=0.1, keep_best=True) != key(share=0.1)
    assert key(share=0.1, keep_best=True, every=3) != key(share=0.1, keep_best=True)
    # The file is part of the arm's inputs, by its content.
    assert "path" not in key(path=file, early_stopping={})["validation"]
