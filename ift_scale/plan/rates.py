"""The speed of each stage: given in a file, predicted for a machine, or measured, in this order.

A rate belongs to one device: items per second, plus the seconds per stage (starting engines or
ranks) and per arm (building, exporting and loading weights). Items are prompt tokens of the probe,
texts written, examples seen in training, and questions or training items asked. A given rate takes
precedence over measurements, because it is meant for another machine than this one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ift_scale.config.section import Section, Text
from ift_scale.errors import ArtifactError
from ift_scale.estimate import scaling
from ift_scale.estimate.machine import Machine, read_section
from ift_scale.estimate.machine import rate as rate_at
from ift_scale.estimate.shape import ModelShape
from ift_scale.io.files import read_json
from ift_scale.io.manifests import Manifest, read_manifest
from ift_scale.plan.amounts import Amounts
from ift_scale.plan.rate import Rate

ITEMS = {
    "probe": "prompt tokens",
    "write": "texts",
    "train": "examples",
    "evaluate": "questions",
    "learnt": "items",
    "hidden": "questions",
}


class StageRate(Section):
    """The rate of a stage in a `--rates` file."""

    per_second: Annotated[float, Field(gt=0)]
    """Items per second of one device."""
    start_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds per stage."""
    arm_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds per arm."""


class RateFile(Section):
    """A file for `--rates`."""

    source: Text
    """Where the rates come from; printed next to every number."""
    probe: StageRate | None = None
    write: StageRate | None = None
    train: StageRate | None = None
    evaluate: StageRate | None = None
    learnt: StageRate | None = None
    hidden: StageRate | None = None


@dataclass(frozen=True)
class RateSources:
    """The sources of rates that the user chose, and what predictions need."""

    rates: RateFile | None
    machine: Machine | None
    devices: int
    examples: scaling.Examples


def read_rates(path: Path) -> RateFile:
    """Reads a `--rates` file. Raises ConfigError with all problems."""
    return read_section(path, RateFile)


def find(
    stage: str,
    amounts: Amounts,
    siblings: Sequence[Amounts],
    sources: RateSources,
    shape: ModelShape | None,
    here: bool,
) -> Rate | None:
    """Returns a stage's rate, or None if nothing is known.

    `siblings`: variants whose measurements may be used. `here`: True if the plan is for this
    machine's devices.
    """
    stated: StageRate | None = getattr(sources.rates, stage, None)
    if stated is not None and sources.rates is not None:
        return Rate(
            stated.per_second,
            stated.start_seconds,
            stated.arm_seconds,
            f"given: {sources.rates.source}",
        )
    if sources.machine is not None:
        return predicted(stage, amounts, sources, shape) if shape is not None else None
    if not here:
        return None
    models = 1 + len(amounts.config.train.export_epochs)
    own = measured(stage, amounts.root, "measured here", models)
    if own is not None:
        return own
    others = (
        measured(stage, other.root, f"measured in {other.name}", models)
        for other in siblings
        if other is not amounts
    )
    return next((rate for rate in others if rate is not None), None)


def predicted(stage: str, amounts: Amounts, sources: RateSources, shape: ModelShape) -> Rate | None:
    """Returns a stage's rate by the simulator.

    Engines are assumed to reach the machine's rate of large products on the tokens that prompts do
    not share. Starting, loading and exporting are left out. Writing is limited by memory bandwidth,
    token by token, and is not predicted; nor are the several prompts of a training item and the
    states.
    """
    assert sources.machine is not None
    source = f"predicted for {sources.machine.name}, not measured"
    if stage == "train":
        train = amounts.config.train
        step = scaling.global_batch(sources.examples, train, sources.devices)
        seconds = scaling.row(shape, train, sources.machine, step).prediction.seconds
        return Rate(train.global_batch_size / (seconds * sources.devices), 0, 0, source)
    tokens = rate_at(sources.machine.matrix, 4096) / (2 * shape.parameters)
    own = amounts.prompts.own
    if stage not in ("probe", "evaluate") or not own:
        return None
    return Rate(
        tokens * amounts.prompts.tokens / own if stage == "probe" else tokens / own, 0, 0, source
    )


def measured(stage: str, root: Path, source: str, models: int = 1) -> Rate | None:
    """Returns a stage's rate from the manifests in a run's folder, or None if there are none.

    `models`: exported by each arm that the rate is for, with those of `train.export_epochs`.
    """
    folders = [root / stage] if stage in ("probe", "write") else sorted((root / stage).glob("*/"))
    manifests = [manifest for folder in folders if (manifest := read_manifest(folder)) is not None]
    if not manifests:
        return None
    rates: dict[str, Callable[[Sequence[Manifest], Path, str], Rate | None]] = {
        "probe": _probe,
        "write": _write,
        "train": partial(_train, models=models),
    }
    rate_of = rates.get(stage, _asked)
    try:
        return rate_of(manifests, root, source)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ArtifactError(
            f"{root / stage}: a manifest has settings, counts or seconds that its stage does not "
            f"write ({error}). Remove the folder to recreate it, or give --rates."
        ) from error


def _sum(manifests: Sequence[Manifest], part: str) -> float:
    return sum(manifest.seconds.get(part, 0.0) for manifest in manifests)


def _rate(
    items: float, seconds: float, devices: int, start: float, per_arm: float, source: str
) -> Rate | None:
    return Rate(items / (seconds * devices), start, per_arm, source) if items and seconds else None


def _probe(manifests: Sequence[Manifest], root: Path, source: str) -> Rate | None:
    items = sum(manifest.counts.get("prompt_tokens", 0) for manifest in manifests)
    return _rate(
        items,
        _sum(manifests, "scoring"),
        _engines(manifests),
        _sum(manifests, "engine_start"),
        0,
        source,
    )


def _write(manifests: Sequence[Manifest], root: Path, source: str) -> Rate | None:
    items = sum(manifest.counts.get("written_in_this_run", 0) for manifest in manifests)
    return _rate(items, _sum(manifests, "writing"), 1, _sum(manifests, "engine_start"), 0, source)


def _train(manifests: Sequence[Manifest], root: Path, source: str, models: int) -> Rate | None:
    """For arms that early stopping has ended, only the completed steps count.

    Measuring the validation loss belongs to no arm: its examples are items of the plan. Arms that
    are derived from a trained one have no training.
    """
    manifests = [manifest for manifest in manifests if "steps" in manifest.counts]
    if not manifests:
        return None
    items, exported = 0.0, 0
    for manifest in manifests:
        train = manifest.config["train"]
        exported += 1 + len(train.get("export_epochs", []))
        items += min(
            manifest.counts["steps"] * train["global_batch_size"],
            manifest.counts["examples"] * train["epochs"],
        )
    parts = ("build", "live", "keep_best")
    per_arm = sum(_sum(manifests, part) for part in parts) / len(manifests)
    exports = _sum(manifests, "export") + _sum(manifests, "export_epochs")
    per_arm += models * exports / exported
    before = read_json(root / "logs" / "train-seconds.json")
    start = before.get("launch_and_imports", 0.0) + before.get("tokenise", 0.0)
    devices = manifests[0].config["train"]["num_ranks"]
    return _rate(items, _sum(manifests, "steps"), devices, start, per_arm, source)


def _asked(manifests: Sequence[Manifest], root: Path, source: str) -> Rate | None:
    names = ("computed_questions", "computed_items")
    items = sum(manifest.counts.get(name, 0) for manifest in manifests for name in names)
    rest = _sum(manifests, "total") - _sum(manifests, "scoring") - _sum(manifests, "engine_start")
    per_arm = max(0.0, rest) / len(manifests)
    return _rate(
        items,
        _sum(manifests, "scoring"),
        _engines(manifests),
        _sum(manifests, "engine_start"),
        per_arm,
        source,
    )


def _engines(manifests: Sequence[Manifest]) -> int:
    """Returns the devices per engine: scoring seconds are already summed over engines."""
    return manifests[0].config.get("tensor_parallel_size", 1)
