"""The ranks' store as a stranger on the network meets it, who does not know the secret."""

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from ift_scale.ranks import environment, store_server
from ift_scale.ranks.environment import Ranks, free_port
from ift_scale.ranks.launch import Launch
from ift_scale.ranks.store import Connection, NotTrusted, StoreError
from ift_scale.ranks.store_server import StoreServer

SECRET = b"of this launch"


@pytest.fixture
def port() -> int:
    """The port of a store with one value."""
    number = free_port()
    StoreServer("127.0.0.1", number, SECRET)
    _rank(number).set("facts/0", "confidential")
    return number


def _rank(port: int, secret: bytes = SECRET) -> Connection:
    return Connection("127.0.0.1", port, secret, timeout=60)


def _read_all(stranger: socket.socket) -> bytes:
    """Returns what the store sends until it closes the connection."""
    stranger.settimeout(20)
    parts = []
    try:
        while part := stranger.recv(4096):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_ranks_exchange_values(port: int) -> None:
    first, second = _rank(port), _rank(port).another()
    binary = bytes(range(256))
    threading.Timer(0.05, first.set, ("late", binary)).start()
    assert second.get("late") == binary and second.get("facts/0") == b"confidential"
    assert first.add("count", 2) == 2 and second.add("count", 3) == 5
    assert first.compare_set("chosen", "", "a") == b"a" == second.compare_set("chosen", "", "b")
    assert first.num_keys() == 4 and first.delete("late") and not first.check(["late", "count"])
    with pytest.raises(StoreError, match="late: no rank has set this in time"):
        first.wait(["late"], seconds=0)


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\n" + b"\x1b]0;owned\x07" * 10, b"\0" * 64]
)
def test_a_stranger_reads_nothing_and_ends_nothing(
    port: int, sent: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store_server, "HANDSHAKE_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(sent)
        received = _read_all(stranger)
    assert len(received) == 32  # the nonce only
    assert _rank(port).get("facts/0") == b"confidential"
    printed = capfd.readouterr().err
    assert "the ranks' store refused 127.0.0.1" in printed
    assert "\x1b" not in printed and "owned" not in printed and "GET" not in printed


@pytest.mark.engine
def test_a_client_of_torch_cannot_join(port: int) -> None:
    """The former attack: torch's own client, which joined as rank 1 and read rank 0's facts."""
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    with pytest.raises(Exception, match=r"."):
        TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=1)).set("a", "b")
    assert not _rank(port).check(["a"])


def test_a_wrong_secret_is_refused(port: int) -> None:
    with pytest.raises(NotTrusted):
        _rank(port, b"of another launch")
    assert _rank(port).check(["facts/0"])


class _Wire:
    """Someone between a rank and the store who records and changes what the rank sends."""

    def __init__(self, port: int, change: int | None = None):
        self.sent = b""
        self._port, self._change = port, change
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        rank, _ = self._listening.accept()
        server = socket.create_connection(("127.0.0.1", self._port))
        threading.Thread(target=self._pass_back, args=(server, rank), daemon=True).start()
        while part := rank.recv(1 << 16):
            begin = len(self.sent)
            self.sent += part
            if self._change is not None and begin <= self._change < len(self.sent):
                altered = bytearray(part)
                altered[self._change - begin] ^= 1
                part = bytes(altered)
            server.sendall(part)

    @staticmethod
    def _pass_back(server: socket.socket, rank: socket.socket) -> None:
        while part := server.recv(1 << 16):
            rank.sendall(part)
        rank.shutdown(socket.SHUT_RDWR)


def test_a_recorded_handshake_is_useless(port: int) -> None:
    wire = _Wire(port)
    _rank(wire.port).set("secret of the ranks", "1")
    assert SECRET not in wire.sent
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(wire.sent)
        assert len(_read_all(stranger)) == 32


def test_an_altered_message_is_not_executed(port: int) -> None:
    body = len(json.dumps(["set", "a", "b"]))
    wire = _Wire(port, change=64 + 4 + 32 + body - 3)
    with pytest.raises(StoreError):
        _rank(wire.port).set("a", "b")
    assert not _rank(port).check(["a"])


def test_a_false_store_learns_nothing_and_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as false:
        received = []

        def serve() -> None:
            rank, _ = false.accept()
            rank.sendall(b"\0" * 32)
            received.append(rank.recv(64))
            rank.sendall(b"\0" * 32)
            received.append(_read_all(rank))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(NotTrusted, match="not the store of this launch"):
            _rank(false.getsockname()[1])
        thread.join()
    assert SECRET not in b"".join(received) and received[1] == b""


def test_silent_strangers_do_not_keep_ranks_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_server, "_MOST_WAITING", 20)
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
    assert _rank(port).check(["facts/0"])
    for stranger in strangers:
        stranger.close()


def test_the_store_listens_where_the_ranks_are(port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


def _launches(
    folder: Path, monkeypatch: pytest.MonkeyPatch, secret: str = ""
) -> tuple[Launch, Launch]:
    monkeypatch.delenv(environment.SECRET, raising=False)
    if secret:
        monkeypatch.setenv(environment.SECRET, secret)
    return tuple(Launch(folder, Ranks(rank, 0, 2), "node-1", 29500) for rank in (0, 1))  # type: ignore[return-value]


def test_only_this_user_can_read_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zero, one = _launches(tmp_path / "run", monkeypatch)
    os.umask(0)
    zero.publish()
    assert zero.file.stat().st_mode & 0o777 == 0o600
    one.read()
    assert one.secret == zero.secret and len(one.secret) == 64
    zero.withdraw()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_launcher_of_ours_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.SECRET, "given")
    zero = Launch(tmp_path, Ranks(0, 0, 2), "127.0.0.1", 1)
    zero.publish()
    assert zero.secret == b"given" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["readable by all", "link", "pipe", "damaged", "of another user"])
def test_a_planted_file_is_not_followed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write to a shared run folder could send the ranks to a store of theirs."""
    _, one = _launches(tmp_path, monkeypatch)
    planted = tmp_path / "planted"
    text = "[" if kind == "damaged" else json.dumps({"secret": "theirs", "port": 1})
    if kind == "pipe":
        os.mkfifo(planted, 0o600)
    else:
        planted.write_text(text)
        planted.chmod(0o644 if kind == "readable by all" else 0o600)
    if kind == "link":
        one.file.symlink_to(planted)
    else:
        planted.replace(one.file)
    if kind == "of another user":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(OSError):
        one.read()
    assert not one.known


def test_a_file_left_by_a_killed_launch_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = _launches(tmp_path, monkeypatch)
    old.publish()
    new, one = _launches(tmp_path, monkeypatch)
    one.read()
    assert one.secret == old.secret  # a rank that is early connects in vain, and reads again
    new.publish()
    one.read()
    assert one.secret == new.secret != old.secret


def test_torchrun_keeps_its_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    zero, one = _launches(tmp_path, monkeypatch, "set where the command started")
    zero.publish()
    one.read()
    assert one.port == zero.port != 29500 and one.secret == zero.secret
    assert zero.file == one.file and time.time() - zero.file.stat().st_mtime < 60
