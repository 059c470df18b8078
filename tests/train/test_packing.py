"""Step-parity packing: the same examples a step whatever the ranks, nothing split or dropped, costs balanced."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ift_scale.train import packing

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, world_size=st.integers(1, 5), spare=st.integers(0, 500))
def test_every_example_once_and_no_place_over_the_cap(lengths: list[int], world_size: int, spare: int) -> None:
    array = np.array(lengths)
    cap = int(array.max()) + spare
    step = packing.deal(range(len(lengths)), array, world_size, cap, hidden_size=64)
    assert sorted(i for micro in step for place in micro for i in place) == list(range(len(lengths)))
    assert all(len(micro) == world_size for micro in step)
    assert all(array[place].sum() <= cap for micro in step for place in micro if place)


def test_a_step_does_not_depend_on_anything_but_seed_and_number() -> None:
    steps = list(packing.step_examples(50, 16, 2, seed=3))
    assert steps == list(packing.step_examples(50, 16, 2, seed=3))
    assert steps != list(packing.step_examples(50, 16, 2, seed=4))
    assert [len(s) for s in steps] == [16, 16, 16, 2] * 2
    assert sorted(i for s in steps[:4] for i in s) == list(range(50)) == sorted(i for s in steps[4:] for i in s)
    assert steps[:4] != steps[4:]


def test_balance_on_lengths_like_those_of_instruction_sets() -> None:
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, 256).astype(int).clip(8, 2048)
    step = packing.deal(range(256), lengths, 8, 8192, hidden_size=4096)
    assert packing.imbalance(step, lengths, 4096) < 1.02


def test_cost_is_linear_layers_and_attention() -> None:
    assert packing.cost(np.array([6 * 512]), hidden_size=512)[0] == pytest.approx(2 * 6 * 512)


def test_fewer_examples_than_ranks_leave_places_empty() -> None:
    step = packing.deal([0], np.array([5]), world_size=3, token_cap=10, hidden_size=8)
    assert [sorted(map(len, micro)) for micro in step] == [[0, 0, 1]]
