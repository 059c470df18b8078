"""The moments at which a run is killed, in the order in which a run comes to them.

A moment is an observed state plus a random delay, so that the campaign does not depend on the speed
of the machine.
"""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.kills.attempt import ARMS, Attempt
from ift_scale.stages import STAGES


class Moment(NamedTuple):
    """`seen` is true from the moment on; the kill follows within `delay` seconds."""

    stage: str
    name: str
    seen: Callable[[Attempt], bool]
    delay: float = 0.0

    @property
    def title(self) -> str:
        return f"{self.stage}: {self.name}" if self.stage else self.name


def _begun(stage: str) -> Callable[[Attempt], bool]:
    """True when all earlier stages are done."""
    names = [entry.name for entry in STAGES]
    before = names[: names.index(stage)]
    return lambda attempt: all(attempt.is_done(name) for name in before)


def _writing(pattern: str) -> Callable[[Attempt], bool]:
    return lambda attempt: attempt.exists(pattern)


def _engine(stage: str) -> Callable[[Attempt], bool]:
    begun = _begun(stage)
    return lambda attempt: begun(attempt) and any(p.is_engine for p in attempt.processes())


def _at_step(number: int) -> Callable[[Attempt], bool]:
    return lambda attempt: number <= attempt.step()[0] < attempt.step()[1]


def _last_step(attempt: Attempt) -> bool:
    step, of = attempt.step()
    return step == of > 0 and "done" not in attempt.newest_arm()


def _between_arms(attempt: Attempt) -> bool:
    return attempt.exists(f"train/{ARMS[0]}/manifest.json") and bool(attempt.newest_arm())


def _second_arm(attempt: Attempt) -> bool:
    return _between_arms(attempt) and _at_step(9)(attempt)


def _building(attempt: Attempt) -> bool:
    kinds = attempt.newest_arm()
    return bool(kinds) and "begun" not in kinds


MOMENTS = (
    Moment("", "the command starts", lambda attempt: True, 1.0),
    Moment("questions", "gathering", lambda attempt: attempt.is_new("config.yaml"), 0.2),
    Moment("questions", "writing", _writing("questions/*"), 0.1),
    Moment("probe", "the engine starts", _engine("probe"), 2.0),
    Moment("probe", "scoring", lambda attempt: attempt.count("probe/shards/*/*.parquet") > 1, 0.1),
    Moment("probe", "writing", _writing("probe/.*.incomplete*")),
    Moment("write", "running", _begun("write"), 0.05),
    Moment("construct", "selecting", _begun("construct"), 0.3),
    Moment("construct", "writing", _writing("construct/*"), 0.02),
    Moment("train", "tokenising", _writing("train/.tokens/*"), 0.1),
    Moment("train", "the ranks start", lambda a: any(p.is_rank for p in a.processes()), 4.0),
    Moment("train", "the model is built", _building, 0.2),
    Moment("train", "inside the first steps", lambda a: a.newest_arm()[-1:] == ["begun"], 0.03),
    Moment("train", "inside a step", _at_step(5), 0.1),
    Moment("train", "writing a checkpoint", _writing("train/.checkpoints/*/.*.incomplete*"), 0.02),
    Moment("train", "after the last step", _last_step),
    Moment("train", "exporting", _writing("train/.*.incomplete/model/*"), 0.02),
    Moment("train", "between two arms", _between_arms, 0.1),
    Moment("train", "inside a step of the second arm", _second_arm, 0.1),
    Moment("evaluate", "the engine starts", _engine("evaluate"), 2.0),
    Moment("evaluate", "scoring", _writing("evaluate/*/shards/*/*.parquet"), 0.1),
    Moment("evaluate", "new weights", _writing(f"evaluate/{ARMS[0]}/manifest.json"), 0.1),
    Moment("analyse", "computing", _begun("analyse"), 0.5),
    Moment("analyse", "writing", _writing("analyse/.*.incomplete*")),
    Moment("report", "drawing", _begun("report"), 0.3),
    Moment("report", "writing", _writing("report/.*.incomplete*")),
)
