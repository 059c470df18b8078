"""The learning rate: above 0 in every step, including the first and the last."""

import math

import pytest
from torch import nn, optim
from transformers import get_cosine_schedule_with_warmup

from ift_scale.config import TrainConfig
from ift_scale.train.engine.deepspeed import learning_rate


def _rates(num_steps: int, warmup_ratio: float) -> list[float]:
    config = TrainConfig(learning_rate=1.0, warmup_ratio=warmup_ratio)
    return [learning_rate(config, step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 34, 100])
def test_no_step_is_lost(num_steps: int, warmup_ratio: float) -> None:
    rates = _rates(num_steps, warmup_ratio)
    assert min(rates) > 0 and max(rates) == 1
    warmup = math.ceil(warmup_ratio * num_steps)
    assert rates[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_an_arm_of_one_step_or_two_trains_at_the_full_rate() -> None:
    assert _rates(1, 0.03) == [1] and _rates(2, 0.03) == [1, 1]


def test_after_the_warm_up_it_is_the_cosine_of_transformers() -> None:
    schedule = get_cosine_schedule_with_warmup(
        optim.SGD(nn.Linear(1, 1).parameters(), 1.0), 3, 100
    ).lr_lambdas[0]
    rates = _rates(100, 0.03)
    assert rates[3:] == pytest.approx([schedule(step) for step in range(3, 100)])
    assert rates[:3] == pytest.approx([schedule(step + 1) for step in range(3)])  # one step earlier
