"""A study's cost: what each variant and stage takes, given that what variants share is made once. Pure.

The first variant that needs an artifact pays for it. Where the planned devices are a CPU, engines take all its cores, and hours are
core-hours; else they are GPU-hours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ift_scale.plan.amounts import Amounts, ArmWork
from ift_scale.plan.rates import STAGES, Rate


@dataclass(frozen=True)
class Devices:
    """`engines` that ask and write at once, `ranks` that train together; `each`: GPUs or cores that the whole holds, by stage."""

    engines: int
    ranks: int
    cores: int | None
    """Of a CPU; None for GPUs."""

    def of(self, stage: str) -> int:
        return self.ranks if stage == "train" else self.engines

    def hours(self, stage: str, seconds: float) -> float:
        return seconds * (self.cores or self.of(stage)) / 3600

    @property
    def unit(self) -> str:
        return "GPU-hours" if self.cores is None else "core-hours"


@dataclass(frozen=True)
class StageCost:
    """`items` to be done in this variant, without the `shared` ones, which another variant before it makes. None: no rate."""

    variant: str
    stage: str
    items: float
    exact: bool
    arms: int
    shared: int
    """Arms that are taken over; of probe and write 1 where the whole stage is."""
    rate: Rate | None
    seconds: float | None
    hours: float | None


@dataclass(frozen=True)
class ArmCost:
    """Arms of one setting: how many are to be made, and what each and all of them take in training and evaluation."""

    variant: str
    setting: str
    arms: int
    shared: int
    examples: float
    hours: float | None


Rates = dict[tuple[str, str], Rate | None]
"""By (variant, stage)."""


class Shared:
    """Which keys are made already, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def first(self, key: str) -> bool:
        new = key not in self._seen
        self._seen.add(key)
        return new


def own_arms(study: Sequence[Amounts], stage: str) -> list[list[ArmWork]]:
    """Of each variant the arms that no variant before it makes."""
    shared = Shared()
    return [
        [
            work
            for work in one.arms
            if shared.first(work.evaluate_key if stage == "evaluate" else work.key)
        ]
        for one in study
    ]


def stage_costs(study: Sequence[Amounts], rates: Rates, devices: Devices) -> list[StageCost]:
    """A row for each variant and stage."""
    rows = []
    own = {stage: own_arms(study, stage) for stage in ("train", "evaluate")}
    made = {stage: Shared() for stage in ("probe", "write")}
    for number, one in enumerate(study):
        for stage in STAGES:
            rate = rates[one.name, stage]
            if stage in own:
                arms = own[stage][number]
                items: float = sum(
                    work.examples if stage == "train" else work.questions for work in arms
                )
                exact = stage == "evaluate" or all(work.exact for work in one.arms)
                num_arms, shared = len(arms), len(one.arms) - len(arms)
            else:
                first = made[stage].first(one.probe_key if stage == "probe" else one.write_key)
                items = (one.prompt_tokens if stage == "probe" else one.texts) if first else 0
                exact, num_arms, shared = stage == "probe" or one.texts_exact, 0, int(not first)
            seconds = (
                0.0
                if not items
                else None
                if rate is None
                else rate.seconds(items, num_arms, devices.of(stage))
            )
            hours = None if seconds is None else devices.hours(stage, seconds)
            rows.append(
                StageCost(one.name, stage, items, exact, num_arms, shared, rate, seconds, hours)
            )
    return rows


def arm_costs(study: Sequence[Amounts], rates: Rates, devices: Devices) -> list[ArmCost]:
    """A row for each variant and setting, over domains and seeds; starting a stage is in no arm."""
    rows = []
    trained, evaluated = own_arms(study, "train"), own_arms(study, "evaluate")
    for one, to_train, to_evaluate in zip(study, trained, evaluated, strict=True):
        for setting in dict.fromkeys(work.arm.setting for work in one.arms):
            mine = [work for work in to_train if work.arm.setting == setting]
            asked = [work for work in to_evaluate if work.arm.setting == setting]
            examples = sum(work.examples for work in mine)
            found = {
                "train": (examples, len(mine)),
                "evaluate": (float(sum(work.questions for work in asked)), len(asked)),
            }
            hours: float | None = 0.0
            for stage, (items, arms) in found.items():
                rate = rates[one.name, stage]
                if items and rate is None:
                    hours = None
                elif items and rate is not None and hours is not None:
                    seconds = rate.seconds(items, arms, devices.of(stage)) - rate.start_seconds
                    hours += devices.hours(stage, seconds)
            all_arms = sum(work.arm.setting == setting for work in one.arms)
            rows.append(
                ArmCost(one.name, setting, len(mine), all_arms - len(mine), examples, hours)
            )
    return rows


def perhaps_shared(study: Sequence[Amounts]) -> int:
    """Arms that are counted as to be made and may come out equal to an earlier variant's."""
    shared = Shared()
    return sum(not shared.first(work.likely) for arms in own_arms(study, "train") for work in arms)
