"""How fast a stage goes: given in a file, predicted for a machine, or measured here or in another variant, in this order.

A rate is of one device: items a second, with what comes once a stage (starting engines or ranks) and once an arm (building,
exporting, loading weights) apart. Items: prompt tokens of the probe, texts written, examples seen in training, questions evaluated.
What was given counts before what was measured: who gives a rate plans for another machine than this one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ift_scale.config.section import Section, Text
from ift_scale.estimate import scaling
from ift_scale.estimate.machine import Machine, read_section
from ift_scale.estimate.machine import rate as rate_at
from ift_scale.estimate.shape import ModelShape
from ift_scale.io.files import read_json
from ift_scale.io.manifests import Manifest, read_manifest
from ift_scale.plan.amounts import Amounts

STAGES = ("probe", "write", "train", "evaluate")
ITEMS = {"probe": "prompt tokens", "write": "texts", "train": "examples", "evaluate": "questions"}


class GivenRate(Section):
    per_second: Annotated[float, Field(gt=0)]
    """Items a second of one device."""
    start_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Once a stage."""
    arm_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Once an arm."""


class GivenRates(Section):
    """A file for `--rates`."""

    source: Text
    """Where the rates come from: told beside every number."""
    probe: GivenRate | None = None
    write: GivenRate | None = None
    train: GivenRate | None = None
    evaluate: GivenRate | None = None


@dataclass(frozen=True)
class Rate:
    per_second: float
    start_seconds: float
    arm_seconds: float
    source: str

    def seconds(self, items: float, arms: int, devices: int) -> float:
        """Of a stage: what scales with devices, and what does not. Nothing to do takes no time."""
        if items == 0:
            return 0.0
        return self.start_seconds + arms * self.arm_seconds + items / (self.per_second * devices)


@dataclass(frozen=True)
class Given:
    """What the user gave. `shape` is needed for predictions."""

    rates: GivenRates | None
    machine: Machine | None
    devices: int
    examples: scaling.Examples


def read_rates(path: Path) -> GivenRates:
    return read_section(path, GivenRates)


def find(
    stage: str,
    amounts: Amounts,
    siblings: Sequence[Amounts],
    given: Given,
    shape: ModelShape | None,
    here: bool,
) -> Rate | None:
    """None where nothing is known: a guess would mislead. `here`: this machine's devices are those that are planned for."""
    stated: GivenRate | None = getattr(given.rates, stage, None)
    if stated is not None and given.rates is not None:
        return Rate(
            stated.per_second,
            stated.start_seconds,
            stated.arm_seconds,
            f"given: {given.rates.source}",
        )
    if given.machine is not None:
        return predicted(stage, amounts, given, shape) if shape is not None else None
    if not here:
        return None
    own = measured(stage, amounts.root, "measured here")
    if own is not None:
        return own
    found = (
        measured(stage, other.root, f"measured in {other.name}")
        for other in siblings
        if other is not amounts
    )
    return next((rate for rate in found if rate is not None), None)


def predicted(stage: str, amounts: Amounts, given: Given, shape: ModelShape) -> Rate | None:
    """By the simulator. Engines are taken to reach the machine's rate of large products on the tokens that no other prompt shares;
    starting, loading and exporting are left out, and writing, which goes by the memory token by token, is not predicted."""
    assert given.machine is not None
    source = f"predicted for {given.machine.name}, not measured"
    if stage == "train":
        train = amounts.config.train
        found = scaling.row(
            shape, train, given.machine, scaling.global_batch(given.examples, train, given.devices)
        )
        return Rate(
            train.global_batch_size / (found.prediction.seconds * given.devices), 0, 0, source
        )
    tokens = rate_at(given.machine.matrix, 4096) / (2 * shape.parameters)
    own = amounts.prompts.own
    if stage == "write" or not own:
        return None
    return Rate(
        tokens * amounts.prompts.tokens / own if stage == "probe" else tokens / own, 0, 0, source
    )


def measured(stage: str, root: Path, source: str) -> Rate | None:
    """From the manifests of what stands in a run's folder; None where the stage has done nothing yet."""
    folders = (
        sorted((root / stage).glob("*/")) if stage in ("train", "evaluate") else [root / stage]
    )
    manifests = [manifest for folder in folders if (manifest := read_manifest(folder)) is not None]
    if not manifests:
        return None
    return {"probe": _probe, "write": _write, "train": _train, "evaluate": _evaluate}[stage](
        manifests, root, source
    )


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


def _train(manifests: Sequence[Manifest], root: Path, source: str) -> Rate | None:
    """Of an arm that live knowledge has ended early only the steps that were made count."""
    items = 0.0
    for manifest in manifests:
        train = manifest.config["train"]
        items += min(
            manifest.counts["steps"] * train["global_batch_size"],
            manifest.counts["examples"] * train["epochs"],
        )
    per_arm = sum(_sum(manifests, part) for part in ("build", "export", "live")) / len(manifests)
    before = read_json(root / "logs" / "train-seconds.json")
    start = before.get("launch_and_imports", 0.0) + before.get("tokenise", 0.0)
    devices = manifests[0].config["train"]["num_ranks"]
    return _rate(items, _sum(manifests, "steps"), devices, start, per_arm, source)


def _evaluate(manifests: Sequence[Manifest], root: Path, source: str) -> Rate | None:
    items = sum(manifest.counts.get("computed_questions", 0) for manifest in manifests)
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
    """Devices that asked at once: scoring seconds are summed over engines, so one, or those that an engine spans."""
    return manifests[0].config.get("tensor_parallel_size", 1)
