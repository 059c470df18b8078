"""An arm of a test and the control of its ranks, without a process group."""

from pathlib import Path
from typing import Any

from ift_scale.records import Arm
from ift_scale.train.job import ArmJob


class Alone:
    """`Control` of a single rank; `others`: values of further ranks."""

    def __init__(self, *others: Any):
        self.others = others

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]

    def barrier(self) -> None:
        return


def arm_in(folder: Path, key: str = "key") -> ArmJob:
    """Returns the arm `d` of a run in `folder`, without tokens."""
    arm = Arm(domain="d", setting="harmonious", seed=0)
    path = str(folder / "train" / "d")
    return ArmJob(arm=arm, source="", tokens="", folder=path, key=key, inputs={})
