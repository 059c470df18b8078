"""The cost of each variant and stage of a study, counting work that variants share once. Pure.

The first variant that needs an artifact pays for it. On a CPU, engines use all its cores and hours
are core-hours; otherwise they are GPU-hours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ift_scale.plan import asked
from ift_scale.plan.amounts import Amounts, FirstUse, own_arms
from ift_scale.plan.rate import STAGES, Rate


@dataclass(frozen=True)
class Devices:
    """`engines` that score and write at once, `ranks` that train together."""

    engines: int
    ranks: int
    cores: int | None
    """Number of a CPU's cores; None for GPUs."""

    def of(self, stage: str) -> int:
        """Returns the number of devices that a stage uses."""
        return self.ranks if stage == "train" else self.engines

    def hours(self, stage: str, seconds: float) -> float:
        """Returns the GPU-hours or core-hours of a stage."""
        return seconds * (self.cores or self.of(stage)) / 3600

    @property
    def unit(self) -> str:
        return "GPU-hours" if self.cores is None else "core-hours"


@dataclass(frozen=True)
class StageCost:
    """A stage of a variant. `items` excludes work that an earlier variant does.

    `rate`, `seconds` and `hours` are None if no rate is known.
    """

    variant: str
    stage: str
    items: float
    exact: bool
    arms: int
    shared: int
    """Number of arms made by an earlier variant; for probe and write, 1 if the whole stage is."""
    rate: Rate | None
    seconds: float | None
    hours: float | None


@dataclass(frozen=True)
class ArmCost:
    """The arms of one setting: how many to make, and their hours of training and asking."""

    variant: str
    setting: str
    arms: int
    shared: int
    examples: float
    hours: float | None


Rates = dict[tuple[str, str], Rate | None]
"""Rates by (variant, stage)."""


def stage_costs(study: Sequence[Amounts], rates: Rates, devices: Devices) -> list[StageCost]:
    """Returns one row per variant and stage."""
    rows = []
    own = {stage: own_arms(study, stage) for stage in ("train", *asked.STAGES)}
    made = {stage: FirstUse() for stage in STAGES}
    for number, one in enumerate(study):
        for stage in STAGES:
            if stage in asked.STAGES and not asked.is_on(one.config, stage):
                continue
            rate = rates[one.name, stage]
            if stage in own:
                arms = own[stage][number]
                if stage == "train":
                    arms = [work for work in arms if work.derived is None]
                items: float = sum(
                    work.train_items if stage == "train" else work.asked[stage] for work in arms
                )
                of_base = one.base_asked.get(stage, 0)
                if of_base and made[stage].first(one.base_keys[stage]):
                    items += of_base
                exact = stage == "evaluate" or (
                    stage == "train" and all(work.exact for work in one.arms)
                )
                every = [
                    work
                    for work in one.arms
                    if (work.derived is None if stage == "train" else stage in work.asked)
                ]
                num_arms, shared = len(arms), len(every) - len(arms)
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
    """Returns one row per variant and setting, over domains and seeds.

    The time to start a stage belongs to no arm.
    """
    rows = []
    own = {stage: own_arms(study, stage) for stage in ("train", *asked.STAGES)}
    for number, one in enumerate(study):
        for setting in dict.fromkeys(work.arm.setting for work in one.arms):
            of_stage = {
                stage: [work for work in arms[number] if work.arm.setting == setting]
                for stage, arms in own.items()
            }
            mine = of_stage.pop("train")
            examples = sum(work.examples for work in mine)
            work_of = {"train": (sum(work.train_items for work in mine), len(mine))} | {
                stage: (float(sum(work.asked[stage] for work in arms)), len(arms))
                for stage, arms in of_stage.items()
            }
            hours: float | None = 0.0
            for stage, (items, arms) in work_of.items():
                rate = rates.get((one.name, stage))
                if items and rate is None and stage not in asked.OPTIONAL:
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
    """Returns the number of arms to make that may turn out equal to an earlier variant's."""
    shared = FirstUse()
    return sum(not shared.first(work.likely) for arms in own_arms(study, "train") for work in arms)
