"""Stops the ranks that this command launched: they save and end by themselves.

A launcher kills its children when it gets a signal, so no signal is sent to them. Instead, rank 0
checks for a stop file after each step (`control`), and `train/loop.py` saves and exits. Ranks that
SLURM or another launcher started handle the signal themselves, in `control`.
"""

import time
from pathlib import Path

from ift_scale.errors import EnvironmentProblem, Stopped
from ift_scale.train.launch import launcher

GRACE_SECONDS = 600.0
"""Limit for the current step and for saving. A second signal ends the ranks immediately."""
_POLL_SECONDS = 0.1
_RESUMES = "The same command resumes from the last checkpoint."


def request_stop(
    processes: launcher.RankProcesses, stop_file: Path, events: Path, grace: float = GRACE_SECONDS
) -> Stopped:
    """Ask the ranks to save and stop, wait for them, and return the error to raise.

    Does not wait if they have nothing to save: before the first step of an arm, while they start or
    build the model. The caller ends them. Raises EnvironmentProblem if a rank failed instead.
    """
    nothing_left = _nothing_unsaved(events)
    if nothing_left:
        return nothing_left
    stop_file.touch()
    deadline = time.monotonic() + grace
    while processes.running() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    records = list(launcher.read(events))
    stopped = [event for event in records if event["event"] == "stopped"]
    if stopped:
        return stopped_error(stopped[-1])
    failed = [event for event in records if event["event"] == "error"]
    if failed:
        raise EnvironmentProblem(f"while saving, {launcher.failure(failed[0])}")
    if processes.running():
        return Stopped(f"the ranks did not save within {grace:.0f} s and were ended. {_RESUMES}")
    return _nothing_unsaved(events) or Stopped(
        f"the ranks ended before they could save. {_RESUMES}"
    )


def _nothing_unsaved(events: Path) -> Stopped | None:
    """Returns the error to raise if no arm is between the first step of this launch and its end."""
    arm, state = "the first arm", "arm"
    for event in launcher.read(events):
        if event["event"] == "arm":
            arm = event["name"]
        if event["event"] in ("arm", "begun", "done"):
            state = event["event"]
    where = {"arm": f"before training {arm}", "done": f"after training {arm}, which is finished"}
    if state not in where:
        return None
    return Stopped(f"stopped {where[state]}. The same command resumes from there.")


def stopped_error(event: dict[str, object]) -> Stopped:
    """Returns the error for a `stopped` event of the ranks."""
    if event["step"]:
        where = f"training {event['name']} after step {event['step']}, which is saved"
    else:
        where = f"before training {event['name']}"
    return Stopped(f"stopped {where}. The same command resumes from there.")
