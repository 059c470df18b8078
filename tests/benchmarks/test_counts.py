"""The regression guard: counts equal the stored ones, and a regression is detected."""

import copy
from typing import Any

import pytest

from benchmarks.suite import counts

pytestmark = pytest.mark.engine  # it measures DeepSpeed ranks


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return counts.measure()


def test_nothing_costs_more_or_less_than_is_stored(found: dict[str, Any]) -> None:
    changed = counts.differences(counts.stored(), found)
    reported = "\n".join(changed)
    assert not changed, (
        "counts have changed; if this is intended, store them with "
        f"`python -m benchmarks counts --write`:\n{reported}"
    )


@pytest.mark.parametrize(
    ("place", "worse"),
    [
        (("train", "zero0", "flops_of_products"), 1),
        (("train", "zero2", "wire_bytes", "reduce_"), 4),
        (("train", "zero3", "collectives", "_allgather_base_"), 1),
        (("train", "zero1", "operations"), 1),
        (("train", "zero0", "peak_bytes"), 64),
        (("probe", "computed_tokens"), 1),
    ],
)
def test_a_worsening_is_noticed(found: dict[str, Any], place: tuple[str, ...], worse: int) -> None:
    changed = copy.deepcopy(found)
    inner = changed
    for name in place[:-1]:
        inner = inner[name]
    before = inner[place[-1]]
    inner[place[-1]] += worse
    assert counts.differences(found, changed) == [
        f"{'.'.join(place)}: {before:,} before, {before + worse:,} now ({worse / before:+.2%})"
    ]


def test_a_heavier_start_is_noticed(found: dict[str, Any]) -> None:
    changed = copy.deepcopy(found)
    changed["imports"]["--help"].append("torch")
    assert counts.differences(found, changed) == ["imports.--help.torch: new"]


def test_the_ranks_bytes_follow_from_the_parameters(found: dict[str, Any]) -> None:
    """ZeRO's communication by definition: gradients once, and from stage 1 the updated weights."""
    wire = {stage: found["train"][stage]["wire_bytes"] for stage in ("zero0", "zero1")}
    assert wire["zero0"]["allreduce_"] == pytest.approx(wire["zero1"]["reduce_"], abs=8)
    assert found["train"]["zero0"]["computed_tokens"] < found["train"]["zero0"]["tokens"]
