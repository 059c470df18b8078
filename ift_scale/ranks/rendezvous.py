"""The rendezvous of a launch's ranks, before any of them loads a model.

Ranks exchange messages through torch's TCPStore at MASTER_ADDR and MASTER_PORT, which every
launcher sets and torch.distributed also uses. Unlike a collective, a store does not time out while
rank 0 tokenises.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from ift_scale.errors import EnvironmentProblem
from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks
from ift_scale.ranks.preflight import RankFacts, facts_here, problems

JOIN_SECONDS = float(os.environ.get("IFT_SCALE_JOIN_SECONDS", "300"))
"""Time limit for all ranks to join. Containers on a slow file system may need more."""
GRACE_SECONDS = 2.0
"""Time that rank 0 stays after a failure, so that the others can read the message."""
_MIN_PAUSE, _MAX_PAUSE = 0.05, 1.0


def prefixed_store(name: str, store: Any) -> Any:
    """Returns a view of a store with keys of its own, separate from those of other jobs.

    Two jobs can share a store if they happened to choose the same node and port.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    variables = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    launch = ".".join(os.environ.get(variable, "") for variable in variables)
    return PrefixStore(f"ift-scale/{launch}/{name}", store)


class PeerFailed(SystemExit):
    """Rank 0 has reported a failure; this rank exits silently with the same code."""


class Rendezvous:
    """Messages between the ranks of a launch. Every rank creates one; rank 0's hosts the store."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.host, self.port = environment.resolve_environment(ranks)
        self.store = self._open()
        self._messages = prefixed_store("meeting", self.store)
        self._num_messages = 0

    def _open(self) -> Any:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        # With torchrun, its agent hosts the store.
        hosted_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        try:
            return TCPStore(
                self.host,
                self.port,
                is_master=self.ranks.is_rank_zero and not hosted_by_launcher,
                wait_for_workers=False,
                multi_tenant=True,
                timeout=timedelta(seconds=JOIN_SECONDS),
            )
        except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
            address = f"{self.host}:{self.port}"
            if "EADDRINUSE" in str(error):
                raise EnvironmentProblem(
                    f"{address}: another program has this port. Set MASTER_PORT to a free one, the "
                    "same for all ranks."
                ) from None
            raise EnvironmentProblem(
                f"rank {self.ranks.rank} on {socket.gethostname()} did not reach rank 0 at "
                f"{address} within {JOIN_SECONDS:.0f} s ({str(error).splitlines()[0]}). Check that "
                "rank 0 has started and that the nodes can connect to each other on this port."
            ) from None

    def check(self, job: str, output: Path) -> None:
        """Reports this rank to rank 0, which checks that all ranks can work together.

        `job`: digest of the configuration. `output`: the run's folder. If there are problems,
        raises EnvironmentProblem with all of them on rank 0, and PeerFailed on the others.
        """
        facts = facts_here(self.ranks, job, output)
        self._messages.set(self._facts_key(self.ranks.rank), json.dumps(asdict(facts)))
        if not self.ranks.is_rank_zero:
            self.receive()
            return
        with self.leading():
            found = problems(self._gather_facts())
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
        while missing := [r for r in range(size) if not self._messages.check([self._facts_key(r)])]:
            if time.monotonic() > deadline:
                raise EnvironmentProblem(
                    f"{len(missing)} of {size} ranks did not join within {JOIN_SECONDS:.0f} s: "
                    f"{', '.join(map(str, missing[:20]))}. Check their nodes, or set "
                    "IFT_SCALE_JOIN_SECONDS to wait longer."
                )
            time.sleep(_MIN_PAUSE)
        return [
            RankFacts(**json.loads(self._messages.get(self._facts_key(rank))))
            for rank in range(size)
        ]

    @contextmanager
    def leading(self) -> Iterator[None]:
        """On rank 0: if the block fails, the other ranks, which wait in `receive`, end with the
        same exit code."""
        try:
            yield
        except BaseException as error:
            self._send({"exit_code": getattr(error, "exit_code", 1)})
            time.sleep(GRACE_SECONDS)  # the store ends with this process
            raise

    def broadcast(self, text: str) -> None:
        """On rank 0: sends a message to all other ranks, each of which calls `receive` once."""
        self._send({"text": text})

    def _send(self, message: dict[str, Any]) -> None:
        self._messages.set(f"word/{self._num_messages}", json.dumps(message))
        self._num_messages += 1

    def receive(self) -> str:
        """Returns rank 0's next message, without a time limit. Raises PeerFailed if it failed."""
        key, pause = f"word/{self._num_messages}", _MIN_PAUSE
        try:
            while not self._messages.check([key]):
                time.sleep(pause)
                pause = min(_MAX_PAUSE, 1.1 * pause)
            message = json.loads(self._messages.get(key))
        except RuntimeError as error:
            raise EnvironmentProblem(
                f"rank {self.ranks.rank}: lost the connection to rank 0 "
                f"({str(error).splitlines()[0]}). See rank 0's log for the reason."
            ) from None
        self._num_messages += 1
        if "exit_code" in message:
            raise PeerFailed(message["exit_code"])
        return str(message["text"])


@lru_cache(maxsize=1)
def meet(ranks: Ranks) -> Rendezvous:
    """Returns this process's rendezvous, which is created once."""
    return Rendezvous(ranks)
