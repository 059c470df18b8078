"""The speed of a stage, and the stages that have one."""

from dataclasses import dataclass

STAGES = ("probe", "write", "train", "evaluate", "learnt", "hidden")


@dataclass(frozen=True)
class Rate:
    """The rate of a stage with its source."""

    per_second: float
    start_seconds: float
    arm_seconds: float
    source: str

    def seconds(self, items: float, arms: int, devices: int) -> float:
        """Returns the seconds of a stage with `items` items, 0 for none."""
        if items == 0:
            return 0.0
        return self.start_seconds + arms * self.arm_seconds + items / (self.per_second * devices)
