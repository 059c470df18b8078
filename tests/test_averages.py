"""The arms of `train.average`: their names, order, labels, and the commands that share them."""

from pathlib import Path

import pytest

from ift_scale.analyse.comparisons import pairs
from ift_scale.config.file import from_dict
from ift_scale.errors import ConfigError
from ift_scale.records import Arm
from ift_scale.report import colors
from ift_scale.stage import trained_arm, with_averages
from ift_scale.treatments import (
    average_of,
    averaged_setting,
    consistency_ratio,
    in_order,
    treatment,
    unknown_ratio,
)


def test_an_average_is_named_and_described_after_its_trained_arm() -> None:
    setting = averaged_setting("mixture-0.4", 0.25)
    assert setting == "mixture-0.4-average-0.25" and average_of(setting) == ("mixture-0.4", 0.25)
    assert average_of("mixture-0.4") == ("mixture-0.4", None)
    # It is no point of the curve over ratios, and has a label of its own.
    assert consistency_ratio(setting) is None and unknown_ratio("unknown-average-0.5") is None
    assert treatment(setting).ratio is None and treatment(setting).short == "S 0.4 @0.25"
    assert treatment("harmonious-average-0.5").label == "harmonious, 0.5 of its change"
    shades = [colors.of(s) for s in ("natural-average-0.1", "harmonious-average-0.9", "harmonious")]
    assert len(set(shades)) == 3


def test_averages_follow_their_arm_everywhere() -> None:
    arms = [Arm(domain="d", setting=s, seed=0) for s in ("harmonious", "own")]
    every = with_averages(arms, [0.25, 0.75])
    names = [arm.setting for arm in every]
    assert names[:3] == ["harmonious", "harmonious-average-0.25", "harmonious-average-0.75"]
    assert [trained_arm(arm) for arm in every] == [arms[0]] * 3 + [arms[1]] * 3
    assert in_order([*names[::-1], "natural"]) == [
        "harmonious", "harmonious-average-0.75", "harmonious-average-0.25", "natural",
        "own", "own-average-0.75", "own-average-0.25",
    ]  # fmt: skip


def test_averages_are_compared_with_their_trained_arm_only() -> None:
    found = pairs(["harmonious", "incompatible", "harmonious-average-0.5", "mine"])
    assert ("harmonious-average-0.5", "harmonious") in found
    assert [pair for pair in found if "harmonious-average-0.5" in pair] == [found[-1]]


@pytest.mark.parametrize(
    ("average", "message"),
    [
        ([0.25, 0.25], r"train.average\[1\]: 0.25 occurs twice"),
        ([0.12345], r"train.average\[0\]: 0.12345 has more than four decimals"),
        ([1.0], "less than 1"),
        ([0.0], "greater than or equal to 0.0001"),
    ],
)
def test_bad_shares_are_refused(tmp_path: Path, average: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict({"output_dir": str(tmp_path), "train": {"average": average}})


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
