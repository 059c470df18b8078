"""Ending the ranks of a launch so that the same command goes on: they save after the step they are in and leave by themselves.

A launcher kills its children when it gets a signal, so none is sent: a file that rank 0 looks for after each step asks them.
"""

import time
from pathlib import Path

from ift_scale.errors import EnvironmentProblem, Stopped
from ift_scale.train.launch import launcher

GRACE_SECONDS = 600.0
"""What the ranks get for the step they are in and for saving. A second signal ends them at once."""
_POLL_SECONDS = 0.1


def stop(
    group: launcher.Group, stop_file: Path, events: Path, grace: float = GRACE_SECONDS
) -> Stopped:
    """Ask the ranks to save and end, wait for them, and say where the same command goes on.

    EnvironmentProblem where a rank has failed instead.
    """
    stop_file.touch()
    deadline = time.monotonic() + grace
    while group.running() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    told = list(launcher.read(events))
    found = [event for event in told if event["event"] == "stopped"]
    if found:
        return stopped(found[-1])
    failed = [event for event in told if event["event"] == "error"]
    if failed:
        raise EnvironmentProblem(
            f"rank {failed[0]['rank']} failed while it was to save: {failed[0]['message']}"
        )
    if group.running():
        return Stopped(
            f"the ranks had not saved within {grace:.0f} s and were ended. The same command goes on from what was saved."
        )
    return Stopped(
        "the ranks ended before they could save. The same command goes on from what was saved."
    )


def stopped(event: dict[str, object]) -> Stopped:
    where = (
        f"{event['name']} after step {event['step']}, which is saved"
        if event["step"]
        else f"before {event['name']}"
    )
    return Stopped(f"stopped in training {where}. The same command goes on from there.")
