"""Times of collectives, compared with values computed by hand."""

import pytest

from ift_scale.errors import DataError
from ift_scale.estimate.collectives import Collective, seconds
from ift_scale.estimate.machine import Kind, Machine, read_machine


def _machine(**changes: object) -> Machine:
    values: dict[str, object] = {
        "inside": {"bandwidth": 100.0, "latency": 0.5},
        "between": {"bandwidth": 5.0, "latency": 2.0},
    }
    return Machine.model_validate(
        read_machine("h100-sxm").model_dump()
        | {"devices_per_node": 4, "host": None}
        | values
        | changes
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("all_gather", 3 * 0.5 + 3 / 4 * 800 / 100),
        ("reduce_scatter", 3 * 0.5 + 3 / 4 * 800 / 100),
        ("all_reduce", 2 * (3 * 0.5 + 3 / 4 * 800 / 100)),
        ("reduce", 3 * 0.5 + 800 / 100),
    ],
)
def test_a_ring_inside_a_node(kind: Kind, expected: float) -> None:
    assert seconds(Collective(kind, 800, 1), _machine(), 4) == pytest.approx(expected)
    assert seconds(Collective(kind, 800, 3), _machine(), 4) == pytest.approx(3 * expected)
    assert seconds(Collective(kind, 800, 3), _machine(), 1) == 0


def test_a_ring_over_nodes_is_limited_by_their_network_cards() -> None:
    """Three nodes of four devices: 4 cards with 5 B/s each, and 2 of 11 steps over the network."""
    expected = 9 * 0.5 + 2 * 2.0 + 11 / 12 * 1200 / 20
    assert seconds(Collective("all_gather", 1200, 1), _machine(), 12) == pytest.approx(expected)


def test_small_all_reduces_use_the_tree() -> None:
    """64 nodes: 3 steps inside and log2(64) = 6 between, twice; a ring would need 2 * 255 steps."""
    assert seconds(Collective("all_reduce", 8, 1), _machine(), 256) == pytest.approx(
        2 * (3 * 0.5 + 6 * 2.0) + 2 * 8 / 20
    )


def test_a_missing_link_is_reported() -> None:
    with pytest.raises(DataError, match="is one node of 4 devices, too few for 8 ranks"):
        seconds(Collective("reduce", 8, 1), _machine(between=None), 8)
    with pytest.raises(DataError, match="is missing: the machine has a single device"):
        seconds(Collective("reduce", 8, 1), _machine(inside=None), 2)


def test_a_kind_measured_separately_has_its_own_link() -> None:
    own = _machine(collectives={"reduce": {"bandwidth": 10.0, "latency": 0.0}})
    assert seconds(Collective("reduce", 80, 1), own, 4) == pytest.approx(8.0)
    assert seconds(Collective("all_gather", 80, 1), own, 4) == seconds(
        Collective("all_gather", 80, 1), _machine(), 4
    )
