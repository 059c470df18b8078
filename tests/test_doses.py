"""Arms with smaller sets or derived weights: their names, order, labels, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from ift_scale.analyse.comparisons import pairs
from ift_scale.config import TrainConfig
from ift_scale.config.file import from_dict
from ift_scale.errors import ConfigError
from ift_scale.records import Arm
from ift_scale.report import colors
from ift_scale.stage import trained_arm, with_derived
from ift_scale.treatments import (
    Dose,
    consistency_ratio,
    dose_of,
    in_order,
    is_constructed,
    treatment,
    unknown_ratio,
)


@pytest.mark.parametrize(
    ("setting", "dose", "label", "short"),
    [
        ("mixture-0.4", Dose("mixture-0.4"), "self-aligning, 0.4 of it", "S 0.4"),
        (
            "mixture-0.4-average-0.25",
            Dose("mixture-0.4", None, "average", 0.25),
            "self-aligning, 0.4 of it, 0.25 of its change",
            "S 0.4 @0.25",
        ),
        (
            "harmonious-size-50-epoch-2",
            Dose("harmonious", 50, "epoch", 2),
            "harmonious, 50 questions, after epoch 2",
            "H n50 e2",
        ),
        (
            "my-set-restored-0.05",
            Dose("my-set", None, "restored", 0.05),
            "my-set, 0.05 restored",
            "my-set r0.05",
        ),
    ],
)
def test_a_dose_is_read_from_its_setting(setting: str, dose: Dose, label: str, short: str) -> None:
    assert dose_of(setting) == dose and dose.setting == setting
    assert (treatment(setting).label, treatment(setting).short) == (label, short)
    assert is_constructed(setting) == (dose.of != "my-set")
    if dose.whole is not None:
        # It is no point of the curve over ratios.
        assert consistency_ratio(setting) is None and treatment(setting).ratio is None


def test_other_endings_name_no_dose() -> None:
    for name in ("a-epoch-0.5", "a-average-1", "a-restored-2", "a-size-0", "a-epoch-01"):
        assert dose_of(name) == Dose(name), name
    assert unknown_ratio("unknown-average-0.5") is None


def test_doses_have_colors_of_their_own() -> None:
    names = ("harmonious", "harmonious-epoch-1", "harmonious-epoch-2", "harmonious-size-50")
    shades = [colors.of(s) for s in (*names, "natural-average-0.1", "harmonious-restored-0.9")]
    assert len(set(shades)) == len(shades)


def test_derived_arms_follow_their_arm_everywhere() -> None:
    arms = [Arm(domain="d", setting=s, seed=0) for s in ("harmonious", "own-size-8")]
    train = TrainConfig(average=[0.25, 0.75], restore=[0.01, 0.2], export_epochs=[1, 2])
    every = with_derived(arms, train)
    assert [arm.setting for arm in every[:7]] == [
        "harmonious", "harmonious-epoch-1", "harmonious-epoch-2", "harmonious-average-0.25",
        "harmonious-average-0.75", "harmonious-restored-0.01", "harmonious-restored-0.2",
    ]  # fmt: skip
    assert [trained_arm(arm) for arm in every] == [arms[0]] * 7 + [arms[1]] * 7
    names = [arm.setting for arm in every]
    assert in_order([*names[::-1], "own", "own-size-30", "natural"]) == [
        "harmonious", "harmonious-epoch-2", "harmonious-epoch-1", "harmonious-average-0.75",
        "harmonious-average-0.25", "harmonious-restored-0.01", "harmonious-restored-0.2", "natural",
        "own", "own-size-30", "own-size-8", "own-size-8-epoch-2", "own-size-8-epoch-1",
        "own-size-8-average-0.75", "own-size-8-average-0.25", "own-size-8-restored-0.01",
        "own-size-8-restored-0.2",
    ]  # fmt: skip


def test_of_the_doses_only_averages_are_compared_and_with_their_trained_arm() -> None:
    average = "harmonious-average-0.5"
    others = ["harmonious-size-50", "harmonious-epoch-1", "harmonious-restored-0.1"]
    found = pairs(["harmonious", "incompatible", average, *others, "mine"])
    assert [pair for pair in found if average in pair] == [(average, "harmonious")]
    assert not {setting for pair in found for setting in pair} & set(others)


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("train", {"average": [0.25, 0.25]}, r"train.average\[1\]: 0.25 occurs twice"),
        ("train", {"restore": [0.5, 0.5]}, r"train.restore\[1\]: 0.5 occurs twice"),
        ("train", {"average": [0.12345]}, r"train.average\[0\]: 0.12345 has more than four deci"),
        ("train", {"average": [1.0]}, "less than 1"),
        ("train", {"restore": [0.0]}, "greater than or equal to 0.0001"),
        ("train", {"export_epochs": [1, 1]}, r"train.export_epochs\[1\]: 1 occurs twice; remove"),
        ("train", {"export_epochs": [3]}, r"\[0\]: 3 is not before the last epoch, .*epochs = 3"),
        ("train", {"export_epochs": [0]}, "greater than 0"),
        (
            "train",
            {
                "export_epochs": [1],
                "validation": {"share": 0.1, "early_stopping": {"patience": 2}},
            },
            "train.export_epochs: train.validation.early_stopping may end an arm before",
        ),
        ("construct", {"sizes": [8, 8]}, r"construct.sizes: duplicate value \(value: \[8, 8\]\)"),
        ("construct", {"sizes": [8], "size": 8}, r"construct.sizes\[0\]: 8 is not below construct"),
        (
            "construct",
            {"settings": ["harmonious-size-8"]},
            "such arms are made by construct.sizes; set that, and harmonious here",
        ),
        (
            "construct",
            {"settings": ["natural-restored-0.1"]},
            "such arms are made by train.restore; set that, and natural here",
        ),
        (
            "construct",
            {"sets": [{"name": "mine-epoch-1", "path": "a.jsonl"}]},
            "'mine-epoch-1' ends as the names of arms with a smaller set or derived weights do",
        ),
    ],
)
def test_impossible_doses_are_refused(
    tmp_path: Path, section: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict({"output_dir": str(tmp_path), section: settings})


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("mlp:5-2", r"train.freeze\[0\]: 'mlp:5-2' ends before it begins"),
        ("mlp:a", r"'mlp:a' is not a range of layers; write mlp:3, mlp:0-5 or mlp:6-"),
        ("head:0-3", r"'head:0-3': no layers can be chosen of this group; write 'head'"),
    ],
)
def test_bad_groups_are_refused(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict({"output_dir": str(tmp_path), "train": {"freeze": [pattern]}})
