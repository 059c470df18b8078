"""A stop waits for the ranks only while they have something to save, and says what was saved."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from ift_scale.errors import EnvironmentProblem
from ift_scale.train.launch import stop
from ift_scale.train.launch.launcher import RankProcesses

ARM = {"event": "arm", "name": "d"}
BEGUN, DONE = {"event": "begun", "step": 3}, {"event": "done", "name": "d", "seconds": {}}


class Ranks:
    """Ranks that write `last` when they see the stop file, and end."""

    def __init__(self, folder: Path, last: list[dict[str, Any]]):
        self.stop_file, self.events = folder / ".stop", folder / "events.jsonl"
        self._last = last

    def write(self, *records: dict[str, Any]) -> None:
        with self.events.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def running(self) -> bool:
        if self.stop_file.exists() and self._last:
            self.write(*self._last)
            self._last = []
            return True
        return not self.stop_file.exists()

    def stop(self) -> str:
        processes = cast(RankProcesses, self)
        return str(stop.request_stop(processes, self.stop_file, self.events))


@pytest.mark.parametrize(
    ("events", "where"),
    [
        ([], "before training the first arm"),
        ([{"event": "joined"}], "before training the first arm"),
        ([{"event": "joined"}, ARM], "before training d"),
        ([ARM, BEGUN, DONE], "after training d, which is finished"),
        ([ARM, BEGUN, DONE, ARM | {"name": "e"}], "before training e"),
    ],
)
def test_it_does_not_wait_for_ranks_without_anything_to_save(
    tmp_path: Path, events: list[dict[str, Any]], where: str
) -> None:
    ranks = Ranks(tmp_path, [])
    ranks.write(*events)
    assert ranks.stop() == f"stopped {where}. The same command resumes from there."
    assert not ranks.stop_file.exists()


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ([{"event": "stopped", "name": "d", "step": 7}], "training d after step 7, which is saved"),
        ([DONE], "stopped after training d, which is finished"),
        ([], "the ranks ended before they could save"),
    ],
)
def test_it_waits_for_what_is_unsaved(
    tmp_path: Path, last: list[dict[str, Any]], said: str
) -> None:
    ranks = Ranks(tmp_path, last)
    ranks.write(ARM, BEGUN, {"event": "step", "step": 4})
    assert said in ranks.stop()


def test_a_rank_that_fails_while_saving(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, [{"event": "error", "rank": 1, "message": "no space"}])
    ranks.write(ARM, BEGUN)
    with pytest.raises(EnvironmentProblem, match="while saving, rank 1 failed: no space"):
        ranks.stop()
