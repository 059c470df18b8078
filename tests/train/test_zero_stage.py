"""The ZeRO stage of a model whose experts are modules of a list."""

from typing import Any

import pytest

from ift_scale.config import TrainConfig
from ift_scale.errors import ConfigError
from ift_scale.train.zero_stage import with_zero_stage


@pytest.mark.parametrize(
    ("stage", "num_ranks", "expected"), [("auto", 2, 3), ("auto", 1, "auto"), (0, 2, 0), (2, 1, 2)]
)
def test_experts_in_a_list_take_zero_3(stage: Any, num_ranks: int, expected: Any) -> None:
    train = TrainConfig(zero_stage=stage, num_ranks=num_ranks)
    assert with_zero_stage(train, True).zero_stage == expected


@pytest.mark.parametrize("stage", [1, 2])
def test_stages_that_add_up_in_the_order_of_a_pass_are_refused(stage: Any) -> None:
    train = TrainConfig(zero_stage=stage, num_ranks=2)
    with pytest.raises(ConfigError, match=f"ZeRO-{stage} adds up wrongly.*auto, 3 or 0"):
        with_zero_stage(train, True)


def test_settings_that_exclude_zero_3_are_refused() -> None:
    train = TrainConfig(compile=True, num_ranks=2)
    with pytest.raises(ConfigError, match=r"train.compile: .*experts are a list"):
        with_zero_stage(train, True)


def test_other_models_keep_their_stage() -> None:
    assert with_zero_stage(TrainConfig(zero_stage=2, num_ranks=2), False).zero_stage == 2
