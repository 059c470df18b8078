"""Description of a machine: rates by size, links, and the source of the numbers.

Read from a YAML file or, by bare name, from the presets in configs/machines. A *device* is what one
rank computes on: a GPU, or a rank's share of a CPU's cores. Curves are points {size: rate}. Between
points, the logarithm of the rate is interpolated over the logarithm of the size; beyond them the
nearest point applies.
"""

import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from ift_scale.config.section import PositiveInt, Section, Text
from ift_scale.errors import ConfigError, DataError, Place, did_you_mean, shorten
from ift_scale.io import yaml_text

# Next to the source, like the model presets.
PRESETS = Path(__file__).parent.parent.parent / "configs" / "machines"

Positive = Annotated[float, Field(gt=0)]
Curve = Annotated[dict[PositiveInt, Positive], Field(min_length=1)]
Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "reduce"]


class Link(Section):
    """A connection between devices or nodes."""

    bandwidth: Positive
    """Bytes per second that a device sends while it receives as many, as reached by collectives."""
    latency: Annotated[float, Field(ge=0)]
    """Seconds of one step from a device to the next."""


class Host(Section):
    """A device's share of its node's host, which holds offloaded state."""

    link: Positive
    """Bytes per second between host and device, in one direction."""
    memory: Positive
    """Bytes per second that the device's share of the cores reads and writes."""


class Machine(Section):
    """A cluster of equal devices."""

    name: Text
    """Name in tables."""
    source: Text
    """Source of the numbers, and which of them are estimates."""
    measured: bool
    """True if all rates were measured on the machine, by `python -m benchmarks.calibrate`."""
    device: Literal["gpu", "cpu"]
    """Kind of device."""
    peak_flops: Positive
    """Dense FLOP/s of one device, the reference for MFU."""
    memory_bytes: Positive | None = None
    """Memory of one GPU."""
    matrix: Curve
    """FLOP/s of a matrix product, by its smallest dimension."""
    attention: Curve
    """Model FLOP/s of causal attention, forward and backward together, by the example's length."""
    memory: Curve
    """Bytes per second of operations that only move data into new memory, by their size in
    bytes."""
    in_place: Curve
    """The same for operations that write where they have read."""
    op_seconds: Annotated[float, Field(ge=0)]
    """Seconds that the host needs to issue an operation."""
    asynchronous: bool
    """True if the host issues operations while the device computes, so that the longer of both
    counts; otherwise their sum counts."""
    overlap: bool
    """True if collectives overlap with the computation of a pass."""
    devices_per_node: PositiveInt
    """Number of devices per node."""
    inside: Link | None = None
    """Link between the devices of a node. Omit it for a machine with a single device."""
    between: Link | None = None
    """Link between nodes, per device's network card. Omit it for a machine with a single node."""
    host: Host | None = None
    """Required for offload only."""
    collectives: dict[Kind, Link] = Field(default_factory=dict)
    """Links inside a node for kinds of collectives that were measured separately."""

    def link(self, kind: Kind) -> Link:
        """Returns the link inside a node. Raises DataError if the machine has none."""
        link = self.collectives.get(kind, self.inside)
        if link is None:
            raise DataError(
                Place(f"machine {self.name}", field="inside"),
                "is missing: the machine has a single device",
                "Describe the link between devices",
            )
        return link


def rate(curve: dict[int, float], size: float) -> float:
    """Returns the curve's value at `size`."""
    points = sorted(curve.items())
    if size <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in itertools.pairwise(points):
        if size <= right:
            share = math.log(size / left) / math.log(right / left)
            return math.exp((1 - share) * math.log(low) + share * math.log(high))
    return points[-1][1]


S = TypeVar("S", bound=Section)


def read_section(path: Path, section: type[S]) -> S:
    """Reads a YAML file as a section of settings. Raises ConfigError with all problems."""
    raw = yaml_text.read_mapping(path)
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(
            str(path), [_problem(details, section) for details in error.errors()]
        ) from None


def _problem(details: Any, section: type[Section]) -> str:
    field = ".".join(map(str, details["loc"]))
    if details["type"] == "extra_forbidden":
        nearest = did_you_mean(str(details["loc"][-1]), section.model_fields)
        return f"{field}: unknown key; {nearest}"
    value = shorten(details["input"])
    return f"{field}: {details['msg'][0].lower()}{details['msg'][1:]} (value: {value})"


def read_machine(machine: str) -> Machine:
    """Reads a machine file, or a preset by its bare name.

    Raises DataError if there is neither, and ConfigError for problems in the file.
    """
    path = Path(machine)
    if not path.is_file():
        presets = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        path = PRESETS / f"{machine}.yaml"
        if machine not in presets:
            raise DataError(
                Place(machine),
                "not a machine file or preset",
                did_you_mean(machine, presets),
            )
    return read_section(path, Machine)
