"""A thousand malformed inputs of all kinds: none ends in a traceback, a hang or silence."""

from collections import Counter

import pytest

from benchmarks import bench_fuzz

pytestmark = pytest.mark.engine
NUM_INPUTS = 1000
RECREATED = ("shards", "checkpoints", "token caches")
"""Kinds whose files have digests: a changed one is refused or made again, hardly ever both."""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Counter[str]]:
    return bench_fuzz.run_all(bench_fuzz.shares(bench_fuzz.kinds(), NUM_INPUTS))


@pytest.mark.parametrize("kind", bench_fuzz.kinds())
def test_inputs_are_read_or_refused_with_words(
    kind: str, outcomes: dict[str, Counter[str]]
) -> None:
    assert kind in RECREATED or (outcomes[kind]["read"] and outcomes[kind]["refused"])
    assert outcomes[kind].keys() <= {"read", "refused"}, outcomes[kind]
