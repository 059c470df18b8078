"""Settings of a source of instructions: a file, a folder or a cached dataset of the hub."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ift_scale.config.section import Domain, Section, Text
from ift_scale.treatments import BASE, dose_of, is_constructed

InstructionFormat = Literal["messages", "sharegpt", "alpaca", "completion"]


class InstructionSource(Section):
    """Instructions in one of the formats that docs/own-data.md lists."""

    path: Text
    """A .jsonl, .json, .csv, .tsv or .parquet file (text also with .gz), a folder of such files or
    one that `datasets` saved, or the id of a dataset on the hub."""
    name: Text | None = None
    """Configuration of a dataset that has several."""
    split: Text | None = None
    """Split to read; slices such as `train[:1000]` are allowed. Default: the only split, or
    `train`."""
    format: Literal["auto"] | InstructionFormat = "auto"
    """Format of the rows. `auto`: detected from the columns."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often an example is used on average: 0.5 draws half of the examples, 2 uses each one
    twice, 1.5 each one once and half of them twice. The draw depends on the examples only."""
    tools: Literal["refuse", "text"] = "refuse"
    """Treatment of tool calls and results. `refuse`: an error. `text`: calls become part of the
    assistant's text, and results the user's."""
    on_error: Literal["stop", "skip"] = "stop"
    """Treatment of a row that cannot be used. `stop`: an error. `skip`: it is left out, and the
    numbers by reason are printed."""


def _own_name(name: str) -> str:
    if is_constructed(name) or name == BASE or name.startswith(("mixture-", "unknown-")):
        raise ValueError(f"'{name}' names a setting of construct.settings; choose another name")
    if dose_of(name).whole is not None:
        raise ValueError(
            f"'{name}' ends as the names of arms with a smaller set or derived weights do; choose "
            "another name"
        )
    return name


class InstructionSet(Section):
    """A set of one's own instructions: an arm per seed, next to those that are built from pools."""

    name: Annotated[Domain, AfterValidator(_own_name)]
    """Name of the set; the setting of its arms. Sets of several domains may share it."""
    path: Text | None = None
    """The only source, read with the default settings of a source. Otherwise set `sources`."""
    sources: Annotated[list[InstructionSource], Field(min_length=1)] | None = None
    """Sources to mix."""
    domain: Domain | None = None
    """Domain of the instructions, which determines the test groups. Default: the domains of all
    pools."""

    @model_validator(mode="after")
    def _check_sources(self) -> "InstructionSet":
        if (self.path is None) == (self.sources is None):
            raise ValueError("set either path or sources")
        return self

    @property
    def label(self) -> str:
        """The name, which follows the domain if it has one: unique among the sets."""
        return f"{self.domain}/{self.name}" if self.domain else self.name

    @property
    def all_sources(self) -> list[InstructionSource]:
        """The sources, also of a set that only has a `path`."""
        return self.sources or [InstructionSource(path=str(self.path))]
