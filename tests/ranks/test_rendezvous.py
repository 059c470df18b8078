"""The rendezvous: messages between ranks and refused launches."""

import socket
from pathlib import Path

import pytest

from ift_scale.ranks.environment import free_port
from ift_scale.ranks.preflight import RankFacts, problems
from tests.ranks.forks import end_all, start
from tests.waiting import LIMIT_SECONDS


def _facts(rank: int, host: str, **changes: object) -> RankFacts:
    known = {
        "local_size": 8,
        "devices": tuple(f"{host}-gpu{number}" for number in range(8)),
        "broken": 0,
        "versions": {"torch": "2.11.0"},
        "free": {"/tmp": 1 << 40},
        "job": "a",
    }
    return RankFacts(rank=rank, host=host, **(known | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        (
            {"versions": {"torch": "2.10.0"}},
            "torch is not the same everywhere: 2.10.0 on n2; 2.11.0 on n1",
        ),
        ({"versions": {}}, "torch is not the same everywhere: 2.11.0 on n1; not installed on n2"),
        ({"devices": ()}, "no GPU is visible on n2, but the other nodes have GPUs"),
        ({"devices": (), "broken": 8}, "torch cannot use the GPUs on n2"),
        ({"devices": ("a", "b", "c", "d")}, "n2 has 8 ranks but 4 GPUs"),
        ({"devices": ("a",)}, "n2 has 8 ranks but 1 GPUs"),
        ({"job": "b"}, "the ranks read different configurations: a on n1; b on n2"),
        (
            {"free": {"/tmp": 1 << 20, "/run": 1 << 40}},
            "n2: /tmp has 1 MiB free, but 8 MiB are needed",
        ),
    ],
)
def test_ranks_that_cannot_work_together(changes: dict[str, object], message: str | None) -> None:
    facts = [_facts(rank, "n1") for rank in range(8)] + [
        _facts(rank, "n2", **changes) for rank in range(8, 16)
    ]
    messages = problems(facts)
    expected = 0 if message is None else 1
    assert len(messages) == expected and all(str(message) in text for text in messages)


def test_ranks_that_each_see_only_their_own_gpus() -> None:
    assert not problems(
        [_facts(rank, "n1", local_size=4, devices=(f"a{rank}", f"b{rank}")) for rank in range(4)]
    )


def test_all_problems_are_reported_together() -> None:
    facts = [
        _facts(0, "n1"),
        _facts(1, "n2", devices=(), versions={"torch": "1"}, job="b", free={"/tmp": 0}),
    ]
    assert len(problems(facts)) == 4


def test_rank_0_refuses_once_and_the_others_leave_with_its_code(tmp_path: Path) -> None:
    ended = end_all(
        start(
            tmp_path,
            'rendezvous.meet(ranks, folder).check(str(ranks.rank), Path("/tmp"))\nprint("went on")',
            3,
        )
    )
    assert [code for code, _ in ended] == [3, 3, 3]
    assert (
        "the ranks read different configurations" in ended[0][1] and ended[0][1].count("Error") == 1
    )
    assert [said for _, said in ended[1:]] == ["", ""]


def test_a_stranger_neither_joins_nor_ends_the_run(tmp_path: Path) -> None:
    """The stranger comes before rank 1, while rank 0 waits for it."""
    body = """
if ranks.rank == 1:
    while not (folder / "refused").exists():
        time.sleep(0.02)
meeting = rendezvous.meet(ranks, folder)
print("listening", flush=True)
meeting.check("same", folder)
print("went on", flush=True)
time.sleep(0.5)
"""
    port = free_port()
    started = start(tmp_path, body, 2, port=port)
    started[0].wait_for("listening")
    (secret,) = tmp_path.glob(".launch-*.json")
    assert secret.stat().st_mode & 0o077 == 0
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"\x1b]0;owned\x07" * 20)
        assert len(stranger.recv(1000)) == 32 and stranger.recv(1000) == b""
    (tmp_path / "refused").touch()
    (code, zero), one = end_all(started)
    assert code == 0 and "went on" in zero and one == (0, "listening\nwent on\n")
    assert "the ranks' store refused 127.0.0.1" in zero and "owned" not in zero
    assert not secret.exists()


def test_messages_of_rank_0_arrive_in_order(tmp_path: Path) -> None:
    body = """
meeting = rendezvous.meet(ranks, folder)
meeting.check("same", Path("/tmp"))
if ranks.is_rank_zero:
    time.sleep(0.3)
    meeting.broadcast("one")
    meeting.broadcast("two")
    time.sleep(1)
else:
    print(meeting.receive(), meeting.receive())
"""
    assert end_all(start(tmp_path, body, 2))[1] == (0, "one two\n")


def test_rank_0_stays_until_its_last_message_is_read(tmp_path: Path) -> None:
    body = """
import atexit
rendezvous.GRACE_SECONDS = 20
meeting = rendezvous.meet(ranks, folder)
meeting.check("same", Path("/tmp"))
if ranks.is_rank_zero:
    meeting.broadcast("done already")
    started = time.monotonic()
    atexit._run_exitfuncs()  # a child of multiprocessing runs none
    print(0.5 < time.monotonic() - started < 15)
else:
    time.sleep(1)
    print(meeting.receive())
"""
    assert end_all(start(tmp_path, body, 2)) == [(0, "True\n"), (0, "done already\n")]


def test_stopped_ranks_leave_before_rank_0_whose_code_counts(tmp_path: Path) -> None:
    body = """
meeting = rendezvous.meet(ranks, folder)
meeting.check("same", Path("/tmp"))
if ranks.rank == 2:
    time.sleep(1)
started = time.monotonic()
meeting.end_stopped()
print(0.9 < time.monotonic() - started < 20, flush=True)
os._exit(75)
"""
    ranks = start(tmp_path, body, 3)
    ranks[0].process.join(LIMIT_SECONDS)
    assert [rank.process.exitcode for rank in ranks] == [75, 0, 0]
    assert [rank.end()[1] for rank in ranks] == ["True\n", "", ""]


@pytest.mark.engine
def test_a_second_check_waits_for_late_ranks(tmp_path: Path) -> None:
    """A study's second variant checks again."""
    body = """
meeting = rendezvous.meet(ranks, folder)
meeting.check("one", Path("/tmp"))
time.sleep(ranks.rank)
meeting.check("two", Path("/tmp"))
if ranks.is_rank_zero:
    time.sleep(1)
print("went on")
"""
    assert end_all(start(tmp_path, body, 2)) == [(0, "went on\n"), (0, "went on\n")]


@pytest.mark.engine
def test_a_rank_that_never_joins_is_named(tmp_path: Path) -> None:
    ended = end_all(
        start(tmp_path, 'rendezvous.meet(ranks, folder).check("", Path("/tmp"))', 3, ranks=[0, 2])
    )
    assert [code for code, _ in ended] == [3, 3]
    assert "1 of 3 ranks did not join within 4 s: 1." in ended[0][1]


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ((code, said),) = end_all(
            start(tmp_path, 'rendezvous.meet(ranks, folder).check("", Path("/tmp"))', 1, port=port)
        )
    assert code == 3 and f"127.0.0.1:{port}: another program has this port. Set MASTER_PORT" in said
