"""Settings of a source of instructions: a file, a folder or a cached dataset of the hub."""

from typing import Annotated, Literal

from pydantic import Field

from ift_scale.config.section import Section, Text

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
