"""The result of a proof for each training path."""

from pydantic import BaseModel, ConfigDict

from ift_scale.config.train import TrainConfig
from ift_scale.train.model.path import PathName, TrainingPath


class Verdict(BaseModel):
    """Result for one path. `difference`: largest relative one; None if the path did not run."""

    model_config = ConfigDict(extra="forbid")

    path: TrainingPath
    is_exact: bool
    difference: float | None = None
    reason: str = ""
    """Why the path is not exact."""


class Proof(BaseModel):
    """The verdicts on the paths, fastest first, up to the one that every setting allows.

    The last one is exact.
    """

    model_config = ConfigDict(extra="forbid")

    kind: str
    """The class."""
    parameters: int
    """Size of the tiny model."""
    tolerance: float
    verdicts: list[Verdict]
    seconds: float
    lists_experts: bool = False
    """True if experts are modules of a list in the model itself (`experts.has_listed_experts`)."""

    def fastest(self, config: TrainConfig) -> TrainingPath:
        """Returns the fastest exact path that the settings allow."""
        allowed = (v for v in self.verdicts if v.path.within(config) == v.path)
        return next(v.path for v in allowed if v.is_exact)

    def faster_than(self, path: TrainingPath) -> list[Verdict]:
        """Returns the first verdict on each faster path that is not exact."""
        rejected: dict[PathName, Verdict] = {}
        for verdict in self.verdicts:
            if verdict.path.name == path.name:
                break
            if not verdict.is_exact:
                rejected.setdefault(verdict.path.name, verdict)
        return list(rejected.values())
