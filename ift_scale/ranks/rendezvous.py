"""The rendezvous of a launch's ranks, before any of them loads a model.

Ranks exchange messages through rank 0's store (`store`) at MASTER_ADDR and MASTER_PORT, which every
launcher sets. torch.distributed also uses this store. Unlike a collective, a store does not time
out while rank 0 tokenises.
"""

import atexit
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ift_scale.errors import EnvironmentProblem
from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks
from ift_scale.ranks.launch import Launch
from ift_scale.ranks.preflight import RankFacts, facts_here, problems
from ift_scale.ranks.store import Connection

JOIN_SECONDS = float(os.environ.get("IFT_SCALE_JOIN_SECONDS", "300"))
"""Time limit for all ranks to join. Containers on a slow file system may need more."""
GRACE_SECONDS = 2.0
"""Longest time for which rank 0 stays at its end, so that the others can read its last message."""
LEAVE_SECONDS = 60.0
"""Longest time for which rank 0 waits for the others to end, when all have been stopped."""
_MIN_PAUSE, _MAX_PAUSE = 0.05, 1.0
_LEFT = "left"


class PeerFailed(SystemExit):
    """Rank 0 has reported a failure; this rank exits silently with the same code."""


class Rendezvous:
    """Messages between the ranks of a launch. Every rank creates one; rank 0's hosts the store."""

    def __init__(self, ranks: Ranks, folder: Path):
        self.ranks = ranks
        self.host, port = environment.resolve_environment(ranks)
        self._launch = Launch(folder, ranks, self.host, port)
        self.store = self._host_store() if ranks.is_rank_zero else self._find_store()
        self._num_messages = 0
        if ranks.is_rank_zero:
            atexit.register(self._stay)

    @property
    def on_loopback(self) -> bool:
        """True if the ranks reach each other through this node's loopback interface."""
        return environment.is_loopback(self.host)

    def _host_store(self) -> Connection:
        from ift_scale.ranks.store_server import StoreServer

        launch = self._launch
        # A name may have a loopback address on its own node only.
        alone = self.ranks.local_size == self.ranks.world_size
        host = self.host if alone or not environment.is_loopback(self.host) else ""
        if self.host in ("localhost", "127.0.0.1", "::1"):
            host = self.host
        try:
            server = StoreServer(host, launch.port, launch.secret)
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            problem = "another program has this port" if in_use else f"cannot be used ({error})"
            raise EnvironmentProblem(
                f"{self.host}:{launch.port}: {problem}. Set MASTER_PORT to a free one, the same for"
                " all ranks."
            ) from None
        launch.publish()
        return self._connect(server.host)

    def _find_store(self) -> Connection:
        """Waits for rank 0's store. Connections of an earlier launch's file are refused, so the
        file is read again every time."""
        deadline, pause = time.monotonic() + JOIN_SECONDS, _MIN_PAUSE
        while True:
            try:
                self._launch.read()
                return self._connect(self.host)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise self._unreachable(error) from None
            time.sleep(pause)
            pause = min(_MAX_PAUSE, 1.1 * pause)

    def _connect(self, host: str) -> Connection:
        return Connection(host, self._launch.port, self._launch.secret, JOIN_SECONDS)

    def _unreachable(self, error: OSError) -> EnvironmentProblem:
        here = f"rank {self.ranks.rank} on {socket.gethostname()}"
        if not self._launch.known:
            return EnvironmentProblem(
                f"{here} did not get the launch's secret from rank 0 within {JOIN_SECONDS:.0f} s "
                f"({error}). Check that rank 0 has started and that all nodes share the folder "
                f"{self._launch.file.parent}, or set {environment.SECRET} on all ranks."
            )
        return EnvironmentProblem(
            f"{here} did not reach rank 0 at {self.host}:{self._launch.port} within "
            f"{JOIN_SECONDS:.0f} s ({error}). Check that rank 0 has started and that the nodes can "
            "connect to each other on this port."
        )

    def check(self, job: str, output: Path) -> None:
        """Reports this rank to rank 0, which checks that all ranks can work together.

        `job`: digest of the configuration. `output`: the run's folder. If there are problems,
        raises EnvironmentProblem with all of them on rank 0, and PeerFailed on the others.
        """
        facts = facts_here(self.ranks, job, output)
        self.store.set(self._facts_key(self.ranks.rank), json.dumps(asdict(facts)))
        if not self.ranks.is_rank_zero:
            self.receive()
            return
        with self.leading():
            try:
                found = problems(self._gather_facts())
            finally:
                self._launch.withdraw()
            if found:
                raise EnvironmentProblem(
                    "the ranks cannot work together:\n" + "\n".join(f"  - {line}" for line in found)
                )
        self.broadcast("")

    def _facts_key(self, rank: int) -> str:
        # The number of messages distinguishes the checks of a study's variants.
        return f"facts/{self._num_messages}/{rank}"

    def _gather_facts(self) -> list[RankFacts]:
        size = self.ranks.world_size
        deadline = time.monotonic() + JOIN_SECONDS
        while missing := [r for r in range(size) if not self.store.check([self._facts_key(r)])]:
            if time.monotonic() > deadline:
                raise EnvironmentProblem(
                    f"{len(missing)} of {size} ranks did not join within {JOIN_SECONDS:.0f} s: "
                    f"{', '.join(map(str, missing[:20]))}. Check their nodes, or set "
                    "IFT_SCALE_JOIN_SECONDS to wait longer."
                )
            time.sleep(_MIN_PAUSE)
        return [
            RankFacts(**json.loads(self.store.get(self._facts_key(rank)))) for rank in range(size)
        ]

    @contextmanager
    def leading(self) -> Iterator[None]:
        """On rank 0: if the block fails, the other ranks, which wait in `receive`, end with the
        same exit code."""
        try:
            yield
        except BaseException as error:
            self._send({"exit_code": getattr(error, "exit_code", 1)})
            self._stay()
            raise

    def _stay(self) -> None:
        """Waits until all ranks have read the last message: the store ends with this process."""
        if self._num_messages and not self.store.add(_LEFT, 0):
            self._wait_for_others(f"read/{self._num_messages - 1}", GRACE_SECONDS)

    def _wait_for_others(self, counter: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.store.add(counter, 0) < self.ranks.world_size - 1:
            if time.monotonic() > deadline:
                return  # a rank has ended before
            time.sleep(_MIN_PAUSE)

    def end_stopped(self) -> None:
        """Called by all ranks after they were stopped: the others end here, and rank 0 returns.

        srun and deepspeed end all ranks when one leaves with another code than 0, and then return
        the code of those that they ended. So the others leave before rank 0, with 0, and without
        Python's teardown, which takes seconds.
        """
        if self.ranks.is_rank_zero:
            self._wait_for_others(_LEFT, LEAVE_SECONDS)
            time.sleep(_MIN_PAUSE)  # from a rank's last message to its end
            return
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(RuntimeError):
            self.store.add(_LEFT, 1)
        os._exit(0)

    def broadcast(self, text: str) -> None:
        """On rank 0: sends a message to all other ranks, each of which calls `receive` once."""
        self._send({"text": text})

    def _send(self, message: dict[str, Any]) -> None:
        self.store.set(f"word/{self._num_messages}", json.dumps(message))
        self._num_messages += 1

    def receive(self) -> str:
        """Returns rank 0's next message, without a time limit. Raises PeerFailed if it failed."""
        key, pause = f"word/{self._num_messages}", _MIN_PAUSE
        try:
            while not self.store.check([key]):
                time.sleep(pause)
                pause = min(_MAX_PAUSE, 1.1 * pause)
            message = json.loads(self.store.get(key))
        except RuntimeError as error:
            raise EnvironmentProblem(
                f"rank {self.ranks.rank}: lost the connection to rank 0 "
                f"({error}). See rank 0's log for the reason."
            ) from None
        with suppress(RuntimeError):  # rank 0 does not wait for ever
            self.store.add(f"read/{self._num_messages}", 1)
        self._num_messages += 1
        if "exit_code" in message:
            raise PeerFailed(message["exit_code"])
        return str(message["text"])


_met: list[Rendezvous] = []


def meet(ranks: Ranks, folder: Path) -> Rendezvous:
    """Returns this process's rendezvous, which is created once.

    `folder`: where rank 0 leaves the secret for the others if the launcher has given them none.
    """
    if not _met:
        _met.append(Rendezvous(ranks, folder))
    return _met[0]
