"""Packing: a step's examples do not depend on the ranks, none is lost, and costs are balanced."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ift_scale.config import TrainConfig
from ift_scale.train.data import packing

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, world_size=st.integers(1, 5), spare=st.integers(0, 500))
def test_every_example_once_and_no_bin_over_the_cap(
    lengths: list[int], world_size: int, spare: int
) -> None:
    array = np.array(lengths)
    cap = int(array.max()) + spare
    step = packing.assign_to_ranks(range(len(lengths)), array, world_size, cap, hidden_size=64)
    assert sorted(i for micro in step for bin_ in micro for i in bin_) == list(range(len(lengths)))
    assert all(len(micro) == world_size for micro in step)
    assert all(array[bin_].sum() <= cap for micro in step for bin_ in micro if bin_)


def test_a_step_does_not_depend_on_anything_but_seed_and_number() -> None:
    steps = list(packing.step_examples(50, 16, 2, seed=3))
    assert steps == list(packing.step_examples(50, 16, 2, seed=3))
    assert steps != list(packing.step_examples(50, 16, 2, seed=4))
    assert [len(s) for s in steps] == [16, 16, 16, 2] * 2
    assert (
        sorted(i for s in steps[:4] for i in s)
        == list(range(50))
        == sorted(i for s in steps[4:] for i in s)
    )
    assert steps[:4] != steps[4:]


def test_max_tokens_are_the_cap_or_a_ranks_share_of_the_longest_step() -> None:
    lengths = np.arange(10, 110)
    for cap, world_size in ((8192, 1), (8192, 3), (300, 2)):
        config = TrainConfig(
            global_batch_size=8, tokens_per_micro_batch=cap, max_length=200, epochs=3
        )
        steps = packing.planned_steps(lengths, config, world_size, 64, 0)
        most = max(int(lengths[bin_].sum()) for step in steps for micro in step for bin_ in micro)
        assert most <= packing.max_micro_batch_tokens(lengths, config, world_size) <= cap
    assert packing.max_micro_batch_tokens(lengths, TrainConfig(packing=False), 1) == 109


def test_balance_on_lengths_like_those_of_instruction_sets() -> None:
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, 256).astype(int).clip(8, 2048)
    step = packing.assign_to_ranks(range(256), lengths, 8, 8192, hidden_size=4096)
    assert packing.imbalance(step, lengths, 4096) < 1.02


def test_cost_is_linear_layers_and_attention() -> None:
    assert packing.cost(np.array([6 * 512]), hidden_size=512)[0] == pytest.approx(2 * 6 * 512)


def _loss(scales: np.ndarray, losses: list[np.ndarray]) -> float:
    """The loss of a step: the sum of each token's cross-entropy times its example's factor."""
    return float(sum(scales[i] * rows.sum() for i, rows in enumerate(losses)))


LOSSES = [np.array([1.0, 3.0]), np.array([5.0]), np.array([2.0, 2.0, 8.0]), np.array([100.0])]
COUNTS = np.array([len(rows) for rows in LOSSES])
IN_STEP = [2, 0, 1]


@pytest.mark.parametrize(
    ("average", "weights", "expected"),
    [
        ("token", [1, 1, 1, 1], 21 / 6),
        ("token", [2, 1, 0.5, 9], (2 * 4 + 5 + 0.5 * 12) / (2 * 2 + 1 + 0.5 * 3)),
        ("example", [1, 1, 1, 1], (2 + 5 + 4) / 3),
        ("example", [2, 1, 0.5, 9], (2 * 2 + 5 + 0.5 * 4) / 3.5),
    ],
)
def test_the_loss_is_the_weighted_mean_over_tokens_or_examples(
    average: str, weights: list[float], expected: float
) -> None:
    scales = packing.loss_scales(IN_STEP, COUNTS, np.array(weights, dtype=float), average)
    assert _loss(scales, LOSSES) == pytest.approx(expected)
    assert scales[3] == 0  # not in the step
    # If every token's loss is 1, so is the mean. A common factor of all weights changes nothing.
    assert (scales * COUNTS).sum() == pytest.approx(1)
    assert packing.loss_scales(IN_STEP, COUNTS, np.array(weights) * 7, average) == pytest.approx(
        scales
    )


def test_a_weight_of_two_counts_as_the_example_twice() -> None:
    counts, losses = np.array([2, 1, 1]), [np.array([1.0, 3.0]), np.array([5.0]), np.array([5.0])]
    for average in ("token", "example"):
        twice = _loss(packing.loss_scales([0, 1, 2], counts, np.ones(3), average), losses)
        weighted = _loss(
            packing.loss_scales([0, 1], counts, np.array([1.0, 2.0, 1.0]), average), losses
        )
        assert weighted == pytest.approx(twice)


def test_fewer_examples_than_ranks_leave_bins_empty() -> None:
    step = packing.assign_to_ranks([0], np.array([5]), world_size=3, token_cap=10, hidden_size=8)
    assert [sorted(map(len, micro)) for micro in step] == [[0, 0, 1]]
