"""A machine: rates by size, links, and where the numbers come from. Read from YAML (configs/machines), presets by bare name.

A *device* is what one rank computes on: a GPU, or a rank's share of a CPU's cores. Curves are points (size: rate) in between which
the rate is interpolated over the logarithms of both; outside of them it is that of the nearest point.
"""

import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from ift_scale.config.section import PositiveInt, Section, Text
from ift_scale.errors import ConfigError, DataError, Place, did_you_mean

# Beside the source, as the model presets are.
PRESETS = Path(__file__).parent.parent.parent / "configs" / "machines"

Positive = Annotated[float, Field(gt=0)]
Curve = Annotated[dict[PositiveInt, Positive], Field(min_length=1)]
Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "reduce"]


class Link(Section):
    bandwidth: Positive
    """Bytes a second that one device sends while it receives as many: what collectives reach, not the wire's own figure."""
    latency: Annotated[float, Field(ge=0)]
    """Seconds of one step from a device to the next."""


class Host(Section):
    """A device's share of its node's host: where offloaded states live."""

    link: Positive
    """Bytes a second between host and device, in one direction."""
    memory: Positive
    """Bytes a second that the device's share of the cores reads and writes."""


class Machine(Section):
    name: Text
    source: Text
    """Where the numbers come from, and which of them are estimates."""
    measured: bool
    """All rates were measured on the machine itself, by `python -m benchmarks.calibrate`."""
    device: Literal["gpu", "cpu"]
    peak_flops: Positive
    """Dense FLOPs a second of one device that MFU is told against."""
    memory_bytes: Positive | None = None
    """Memory of one GPU."""
    matrix: Curve
    """FLOPs a second of a matrix product, by its smallest dimension."""
    attention: Curve
    """Model FLOPs a second of causal attention's forward and backward pass together, by the example's length."""
    memory: Curve
    """Bytes a second of operations that only read and write into new memory, by the bytes that one of them moves."""
    in_place: Curve
    """The same of operations that write where they have read."""
    op_seconds: Annotated[float, Field(ge=0)]
    """Seconds of the host for each operation that it issues."""
    asynchronous: bool
    """The host issues operations while the device computes: the longer of both counts, else their sum."""
    overlap: bool
    """Collectives run beside the computing of a pass."""
    devices_per_node: PositiveInt
    inside: Link | None = None
    """Between the devices of a node; none: the machine is one device."""
    between: Link | None = None
    """Between nodes, of one device's network card; none: the machine is one node."""
    host: Host | None = None
    """Needed for offload only."""
    collectives: dict[Kind, Link] = Field(default_factory=dict)
    """Inside a node, where a kind was measured by itself."""

    def link(self, kind: Kind) -> Link:
        """The one inside a node. DataError where the machine has none."""
        found = self.collectives.get(kind, self.inside)
        if found is None:
            raise DataError(
                Place(f"machine {self.name}", field="inside"),
                "is one device only",
                "Describe the link between devices",
            )
        return found


def rate(curve: dict[int, float], size: float) -> float:
    """The curve's value at `size`."""
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
    """A YAML file as a section of settings; ConfigError with a line for each problem."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            str(path), [f"cannot be read: {error.strerror}; give the path of a YAML file"]
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"not valid YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(raw, dict):
        raise ConfigError(str(path), ["must be a mapping of settings"])
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(
            str(path), [_told(details, section) for details in error.errors()]
        ) from None


def _told(details: Any, section: type[Section]) -> str:
    place = ".".join(map(str, details["loc"]))
    if details["type"] == "extra_forbidden":
        return (
            f"{place}: unknown key; {did_you_mean(str(details['loc'][-1]), section.model_fields)}"
        )
    return f"{place}: {details['msg'][0].lower()}{details['msg'][1:]} (value: {details['input']!r})"


def read_machine(machine: str) -> Machine:
    """A machine file or a preset's bare name. DataError where it is neither, ConfigError for what is wrong in it."""
    path = Path(machine)
    if not path.is_file():
        presets = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        path = PRESETS / f"{machine}.yaml"
        if machine not in presets:
            raise DataError(
                Place(machine), "is no machine file or preset", did_you_mean(machine, presets)
            )
    return read_section(path, Machine)
