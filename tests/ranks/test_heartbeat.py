"""The detection of ranks that are lost or hang."""

import os
import signal
import time
from pathlib import Path

import pytest

from ift_scale.ranks.stall import RankReport, explain, late
from tests.ranks.forks import end_all, start

WATCHED = """
meeting = rendezvous.meet(ranks, folder)
meeting.check("", Path("/tmp"))
watch = heartbeat.Heartbeat(meeting, lambda rank, message: print(f"lost {rank}", flush=True))
print("watching", flush=True)
"""


def test_a_failing_rank_ends_the_others_with_its_message(tmp_path: Path) -> None:
    body = (
        WATCHED
        + 'if ranks.rank == 1:\n    watch.fail("out of luck")\n    sys.exit(1)\ntime.sleep(60)'
    )
    ended = end_all(start(tmp_path, body, 3))
    assert [code for code, _ in ended] == [1, 1, 1]
    assert all(
        "failed: out of luck" in ended[rank][1] and "rank 1 on" in ended[rank][1] for rank in (0, 2)
    )


@pytest.mark.engine
@pytest.mark.parametrize(
    ("victim", "message"), [(1, "rank 1 has not responded"), (0, "rank 0 or its node is gone")]
)
def test_a_killed_rank_is_detected(tmp_path: Path, victim: int, message: str) -> None:
    started = start(tmp_path, WATCHED + "time.sleep(60)", 3)
    for rank in started:
        rank.wait_for("watching")
    began = time.monotonic()
    started[victim].process.kill()
    others = [rank for number, rank in enumerate(started) if number != victim]
    ended = end_all(others)
    assert [code for code, _ in ended] == [1, 1] and time.monotonic() - began < 120
    assert all(message in output for _, output in ended)


@pytest.mark.engine
def test_a_rank_without_a_first_beat_gets_more_time(tmp_path: Path) -> None:
    body = """
meeting = rendezvous.meet(ranks, folder)
meeting.check("", Path("/tmp"))
heartbeat.MISSED_BEATS, rendezvous.JOIN_SECONDS = 10, 60
time.sleep(3 * ranks.rank)  # longer than MISSED_BEATS
watch = heartbeat.Heartbeat(meeting, lambda rank, message: print(f"lost {rank}", flush=True))
meeting.store.set(f"there{ranks.rank}", "")
meeting.store.wait(["there0", "there1"])
watch.close()
if ranks.is_rank_zero:
    time.sleep(1)
print("done", flush=True)
"""
    assert end_all(start(tmp_path, body, 2)) == [(0, "done\n"), (0, "done\n")]


def test_a_closed_heartbeat_ends_no_rank(tmp_path: Path) -> None:
    body = (
        WATCHED
        + """
if ranks.is_rank_zero:
    meeting.store.wait(["closed"])
    watch.close()
    sys.exit(0)
watch.close()
meeting.store.set("closed", "")
time.sleep(1)
print("done")
"""
    )
    ended = end_all(start(tmp_path, body, 2))
    assert [code for code, _ in ended] == [0, 0] and ended[1][1].endswith("done\n")


HANGING = """
from datetime import timedelta
import torch, torch.distributed as dist
from ift_scale.ranks import activity
from ift_scale.ranks.torch_store import TorchStore
meeting = rendezvous.meet(ranks, folder)
meeting.check("", Path("/tmp"))
activity.begin("joining", slow=True)
heartbeat.MISSED_BEATS = 600  # also on a busy machine
lost = lambda *rank_and_message: print(f"lost {rank_and_message}", flush=True)
watch = heartbeat.Heartbeat(meeting, lost, limit=2.0)
store = TorchStore(meeting.store.another())
size = ranks.world_size
dist.init_process_group("gloo", store=store, rank=ranks.rank, world_size=size)
activity.within("step 7 of arm a")
activity.begin("loading micro-batch 2 of 3", "the file system of the tokens")
print("watching", flush=True)
def wait_for_the_disk(how):
    how(600)
"""
LOSING = HANGING.replace("MISSED_BEATS = 600", "MISSED_BEATS = 15").replace("limit=2", "limit=600")
COLLECTIVE = """
activity.begin("computing micro-batch 2 of 3")
dist.all_reduce(torch.zeros(1))
"""


@pytest.mark.engine
def test_a_rank_that_hangs_ends_the_launch_with_all_stacks(tmp_path: Path) -> None:
    """The others wait in a collective of gloo, which holds no lock of Python's.

    Rank 2 reads late why the launch ends; its collective would fail if another left before.
    """
    body = """
heartbeat._REPORT_BEATS = 300  # also on a busy machine
answer = watch._answer
def answer_late(alarm):
    time.sleep(1.0 if ranks.rank == 2 and alarm["end"] else 0.0)
    answer(alarm)
watch._answer = answer_late
if ranks.rank == 1:
    wait_for_the_disk(time.sleep)
"""
    ended = end_all(start(tmp_path, HANGING + body + COLLECTIVE, 3))
    assert [code for code, _ in ended] == [1, 1, 1]
    for rank, (_, output) in enumerate(ended):
        assert f"rank {rank} on " in output and "the Python stack of every thread" in output
        assert "no rank has advanced for 2 s: rank 1 on " in output
        assert "did not arrive, it is loading micro-batch 2 of 3 (step 7 of arm a) (" in output
        assert "in wait_for_the_disk). Ranks 0, 2 are computing micro-batch 2 of 3" in output
        assert "(step 7 of arm a), in all_reduce (" in output
        assert "Check the file system of the tokens. The log has the stacks of all" in output
    assert "lost (None, 'no rank has advanced" in ended[0][1]
    assert "Connection closed" not in ended[0][1]  # it leaves first, so its collective never fails
    assert "in wait_for_the_disk\n" in ended[1][1] and "in all_reduce\n" in ended[2][1]


@pytest.mark.engine
def test_rank_0_that_is_stopped_is_named_and_prints_its_stack(tmp_path: Path) -> None:
    body = """
while ranks.rank and not watch._rank_zero:
    time.sleep(0.02)
print("known", flush=True)
wait_for_the_disk(time.sleep)
"""
    zero, one = started = start(tmp_path, LOSING + body, 2)
    for rank in started:
        rank.wait_for("known")
    assert zero.process.pid is not None
    os.kill(zero.process.pid, signal.SIGSTOP)
    try:
        code, output = one.end()
        reason = f"its process {zero.process.pid} was stopped (SIGSTOP"
        assert code == 1 and "rank 0 has not responded for 3 s" in output and reason in output
        assert "lost (0, 'has not responded" in output
        zero.wait_for("in wait_for_the_disk")
    finally:
        zero.process.kill()


@pytest.mark.engine
def test_ranks_that_share_work_survive_a_lost_one_and_end_with_one_that_hangs(
    tmp_path: Path,
) -> None:
    """Rank 1 is killed, which the others survive; then rank 2 is stopped, which they wait for."""
    body = """
watch._survives = True
print("known", flush=True)
while not (folder / "wait").exists():
    activity.advance()
    time.sleep(0.05)
print("went on", flush=True)
activity.alone("waiting for the chunks of other ranks", waits=True)
wait_for_the_disk(time.sleep)
"""
    beats = "MISSED_BEATS, heartbeat._REPORT_BEATS = 5, 12"
    losing = HANGING.replace("MISSED_BEATS = 600", beats)
    zero, _, two = started = start(tmp_path, losing + body, 3)
    for rank in started:
        rank.wait_for("known")
    pids = [rank.process.pid for rank in started]
    assert pids[1] is not None and pids[2] is not None
    os.kill(pids[1], signal.SIGKILL)
    time.sleep(2)  # twice MISSED_BEATS
    os.kill(pids[2], signal.SIGSTOP)
    (tmp_path / "wait").touch()
    try:
        code, output = zero.end()
        assert code == 1 and "went on" in output
        assert "no rank has advanced for 2 s: rank 1 does not respond: its process" in output
        assert f"{pids[1]} has ended; rank 2 does not respond while " in output
        assert f"its process {pids[2]} was stopped (SIGSTOP" in output
        assert "Rank 0 is waiting for the chunks of other ranks" in output
        two.wait_for("rank 2 on ")
    finally:
        two.process.kill()


@pytest.mark.engine
def test_a_rank_that_hangs_when_rank_0_has_done_the_work_ends(tmp_path: Path) -> None:
    body = """
watch._survives = True
if ranks.is_rank_zero:
    meeting.store.wait(["hangs"])
    os._exit(0)
meeting.store.set("hangs", "")
wait_for_the_disk(time.sleep)
"""
    (zero, _), (one, output) = end_all(start(tmp_path, HANGING + body, 2))
    assert (zero, one) == (0, 1) and "in wait_for_the_disk" in output
    assert "rank 1 ended: rank 0 has left, and no progress was made for 2 s" in output


@pytest.mark.engine
def test_a_rank_that_hangs_in_a_library_prints_its_stack(tmp_path: Path) -> None:
    """It holds Python's lock, so that none of its threads can report."""
    library = """
import itertools
if ranks.rank == 1:
    wait_for_the_disk(lambda seconds: sum(itertools.repeat(0)))
"""
    started = start(tmp_path, LOSING + library + COLLECTIVE, 2)
    code, output = started[0].end()
    assert code == 1 and "rank 1 has not responded for 3 s: its process" in output
    assert "is busy outside of Python" in output
    started[1].wait_for("in wait_for_the_disk")
    started[1].process.kill()


@pytest.mark.engine
def test_slow_phases_and_ranks_that_wait_for_another_are_left_alone(tmp_path: Path) -> None:
    """A slow phase of twice the limit, then one rank that advances while the other waits."""
    body = """
watch._limit = 1.0
activity.begin("saving step-20", slow=True)
time.sleep(2)
activity.begin("exporting arm a")
for _ in range(0 if ranks.rank else 10):
    time.sleep(0.2)
    activity.advance()
dist.barrier()
watch.close()
if ranks.rank:
    meeting.store.set("done", "")
else:
    meeting.store.wait(["done"])
print("done", flush=True)
os._exit(0)
"""
    ended = end_all(start(tmp_path, HANGING + body, 2))
    assert ended == [(0, "watching\ndone\n")] * 2


def _report(rank: int, label: str, position: int, collective: str = "") -> RankReport:
    return RankReport(rank, "n1", label, f"the {label} disk", position, "a.py:1 in f", collective)


def test_the_ranks_that_wait_for_nobody_are_named() -> None:
    reports = [_report(0, "computing", 8, "all_reduce"), _report(1, "loading", 7)]
    assert [report.rank for report in late(reports)] == [1]
    # Also if they are in a later phase than those that wait for them.
    reports = [_report(0, "exporting", 9), _report(1, "computing", 8, "barrier")]
    assert [report.rank for report in late(reports)] == [0]


def test_without_a_visible_collective_the_earliest_phase_counts() -> None:
    reports = [_report(0, "computing", 9), _report(1, "loading", 7), _report(2, "computing", 9)]
    assert [report.rank for report in late(reports)] == [1]
    text = explain(dict(enumerate(reports)), {}, 900)
    assert text == (
        "no rank has advanced for 900 s: rank 1 on n1 did not arrive, it is loading (a.py:1 in f). "
        "Ranks 0, 2 are computing (a.py:1 in f). Check the loading disk. The log has the stacks of "
        "all ranks."
    )


def test_if_all_ranks_have_arrived_the_network_is_named() -> None:
    reports = {rank: _report(rank, "computing", 9, "all_reduce") for rank in range(2)}
    text = explain(reports, {}, 900)
    assert "all ranks wait in a collective. Ranks 0, 1 are computing, in all_reduce" in text
    assert "Check the network between the nodes" in text


def test_a_single_rank_that_hangs() -> None:
    text = explain({0: _report(0, "loading", 9)}, {}, 900)
    assert "rank 0 on n1 hangs loading (a.py:1 in f). Check the loading disk." in text


def test_silent_ranks_come_first() -> None:
    text = explain({0: _report(0, "computing", 9)}, {1: "its process 7 has ended"}, 900)
    assert text == (
        "no rank has advanced for 900 s: rank 1 does not respond: its process 7 has ended. "
        "Rank 0 is computing (a.py:1 in f)."
    )
