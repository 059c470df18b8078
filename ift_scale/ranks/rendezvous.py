"""The ranks of a launch meet before any of them loads a model, and watch each other while they work.

They talk through torch's TCPStore at MASTER_ADDR and MASTER_PORT, which every launcher sets and torch.distributed uses, too: no
collective waits while rank 0 tokenises, and a rank that has gone is missed within a minute even where its node went with it.
"""

import json
import os
import shutil
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from ift_scale.errors import EnvironmentProblem
from ift_scale.io.machine import package_versions
from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks

JOIN_SECONDS = float(os.environ.get("IFT_SCALE_JOIN_SECONDS", "300"))
"""How long the ranks wait for each other at the start; containers on a slow file system may need more."""
BEAT_SECONDS = 2.0
MISSED_BEATS = 20
"""A rank not heard of for so many looks is lost. Looks rather than seconds: a job that was suspended as a whole goes on."""
_FREE_BYTES = 8 << 20
"""A disk with less is as good as full."""
_SHORTEST_PAUSE = 0.05


@dataclass(frozen=True)
class Facts:
    """What a rank tells of itself; `asked` is a digest of what it was asked to do."""

    rank: int
    host: str
    local_size: int
    devices: tuple[str, ...]
    """UUIDs of the GPUs that torch can use here."""
    broken: int
    """GPUs that are visible here although torch can use none."""
    versions: dict[str, str]
    free: dict[str, int]
    """Bytes free in the folders that ranks write to."""
    asked: str


def facts_here(ranks: Ranks, asked: str, output: Path) -> Facts:
    """`output`: the run's folder, which may have to be made yet."""
    import torch

    output = next(
        folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists()
    )

    devices = tuple(
        str(torch.cuda.get_device_properties(number).uuid)
        for number in range(torch.cuda.device_count())
    )
    broken = 0 if devices else len(environment.visible_devices())
    free = {
        str(folder): _free_bytes(folder)
        for folder in (Path(os.environ.get("TMPDIR", "/tmp")), output)
    }
    return Facts(
        ranks.rank,
        socket.gethostname(),
        ranks.local_size,
        devices,
        broken,
        package_versions(),
        free,
        asked,
    )


def _free_bytes(folder: Path) -> int:
    """0 where nothing can be written."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def problems(found: Sequence[Facts]) -> list[str]:
    """Why these ranks cannot work together, a line for each reason, with the hosts that differ."""
    told = []
    for package in sorted({name for facts in found for name in facts.versions}):
        hosts = _hosts_by(
            (facts.versions.get(package, "not installed"), facts.host) for facts in found
        )
        if len(hosts) > 1:
            told.append(
                f"{package} is not the same everywhere: {_listed(hosts)}. Install the same lock file on all nodes."
            )
    told += _gpu_problems(found)
    if len(asked := _hosts_by((facts.asked[:8], facts.host) for facts in found)) > 1:
        told.append(
            f"the ranks read different configurations: {_listed(asked)}. All nodes must see the same files."
        )
    for host, folder, free in sorted(
        {(facts.host, *item) for facts in found for item in facts.free.items()}
    ):
        if free < _FREE_BYTES:
            told.append(
                f"{host}: {folder} has {free >> 20} MiB free and {_FREE_BYTES >> 20} are needed. Free some space there, or set "
                "TMPDIR (scratch) or output_dir to another folder."
            )
    return told


def _gpu_problems(found: Sequence[Facts]) -> list[str]:
    told = []
    hosts: dict[str, list[Facts]] = defaultdict(list)
    for facts in found:
        hosts[facts.host].append(facts)
    broken = [host for host, there in sorted(hosts.items()) if any(facts.broken for facts in there)]
    if broken:
        told.append(
            f"torch can use no GPU on {', '.join(broken)}, although there are some. Look at nvidia-smi there."
        )
    without = [
        host
        for host, there in sorted(hosts.items())
        if host not in broken and not any(facts.devices for facts in there)
    ]
    if without and len(without) < len(hosts):
        told.append(
            f"no GPU is visible on {', '.join(without)}, and the other nodes have some. Look at nvidia-smi and at "
            "CUDA_VISIBLE_DEVICES there, or leave the node out."
        )
    for host, there in sorted(hosts.items()):
        devices = {device for facts in there for device in facts.devices}
        if devices and len(devices) < there[0].local_size:
            told.append(
                f"{host} has {there[0].local_size} ranks and {len(devices)} GPUs. Start as many ranks as there are GPUs."
            )
    return told


def _hosts_by(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """From (value, host) pairs the hosts of each value."""
    hosts: dict[str, set[str]] = defaultdict(set)
    for value, host in found:
        hosts[value].add(host)
    return {value: sorted(names) for value, names in sorted(hosts.items())}


def _listed(hosts: dict[str, list[str]]) -> str:
    return "; ".join(f"{text} on {', '.join(names)}" for text, names in hosts.items())


def _prefixed(name: str, store: Any) -> Any:
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    # Jobs that met at one port by chance do not hear each other.
    launch = ".".join(
        os.environ.get(part, "")
        for part in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    )
    return PrefixStore(f"ift-scale/{launch}/{name}", store)


class Refused(SystemExit):
    """Rank 0 has told what is wrong; this rank ends with the same code and says nothing."""


class Meeting:
    """The place where the ranks of a launch meet. Every rank makes one; rank 0's holds the store."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.host, self.port = environment.settle(ranks)
        self.store = self._open()
        self._own = _prefixed("meeting", self.store)
        self._told = 0

    def _open(self) -> Any:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        hosted_by_launcher = (
            os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        )  # torchrun's agent holds the store
        try:
            return TCPStore(
                self.host,
                self.port,
                is_master=self.ranks.leads and not hosted_by_launcher,
                wait_for_workers=False,
                multi_tenant=True,
                timeout=timedelta(seconds=JOIN_SECONDS),
            )
        except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
            place = f"{self.host}:{self.port}"
            if "EADDRINUSE" in str(error):
                raise EnvironmentProblem(
                    f"{place}: another program has this port. Set MASTER_PORT to a free one, the same for all ranks."
                ) from None
            raise EnvironmentProblem(
                f"rank {self.ranks.rank} on {socket.gethostname()} did not reach rank 0 at {place} within {JOIN_SECONDS:.0f} s "
                f"({str(error).splitlines()[0]}). Look whether rank 0 has started, and whether the nodes reach each other there."
            ) from None

    def check(self, asked: str, output: Path) -> None:
        """Tell rank 0 about this rank. EnvironmentProblem on rank 0, with all that is wrong; Refused on the others."""
        mine = facts_here(self.ranks, asked, output)
        self._own.set(f"facts/{self._told}/{self.ranks.rank}", json.dumps(asdict(mine)))
        if not self.ranks.leads:
            self.hear()
            return
        with self.leading():
            told = problems(self._gathered())
            if told:
                raise EnvironmentProblem(
                    "the ranks cannot work together:\n" + "\n".join(f"  - {line}" for line in told)
                )
        self.tell("")

    def _gathered(self) -> list[Facts]:
        names = [f"facts/{self._told}/{rank}" for rank in range(self.ranks.world_size)]
        deadline = time.monotonic() + JOIN_SECONDS
        while missing := [name for name in names if not self._own.check([name])]:
            if time.monotonic() > deadline:
                ranks = ", ".join(name.rpartition("/")[2] for name in missing[:20])
                raise EnvironmentProblem(
                    f"of {self.ranks.world_size} ranks {len(missing)} have not come within {JOIN_SECONDS:.0f} s: {ranks}. Look at "
                    "their nodes; IFT_SCALE_JOIN_SECONDS sets how long they are waited for."
                )
            time.sleep(_SHORTEST_PAUSE)
        return [Facts(**json.loads(self._own.get(name))) for name in names]

    @contextmanager
    def leading(self) -> Iterator[None]:
        """On rank 0: if the block fails, the others, who wait to hear from it, end with the same exit code."""
        try:
            yield
        except BaseException as error:
            self._say({"exit_code": getattr(error, "exit_code", 1)})
            time.sleep(BEAT_SECONDS)  # the store ends with this process: let them hear
            raise

    def tell(self, text: str) -> None:
        """On rank 0: hand all others a word; each of them calls `hear` once for it."""
        self._say({"text": text})

    def _say(self, message: dict[str, Any]) -> None:
        self._own.set(f"word/{self._told}", json.dumps(message))
        self._told += 1

    def hear(self) -> str:
        """What rank 0 tells next, however long it takes to. Refused where it has failed."""
        name, pause = f"word/{self._told}", _SHORTEST_PAUSE
        try:
            while not self._own.check([name]):
                time.sleep(pause)
                pause = min(1.0, 1.1 * pause)
            message = json.loads(self._own.get(name))
        except RuntimeError as error:
            raise EnvironmentProblem(
                f"rank {self.ranks.rank}: rank 0 has gone ({str(error).splitlines()[0]})"
            ) from None
        self._told += 1
        if "exit_code" in message:
            raise Refused(message["exit_code"])
        return str(message["text"])


@lru_cache(maxsize=1)
def meet(ranks: Ranks) -> Meeting:
    """The meeting of this process, one however often it is asked for."""
    return Meeting(ranks)


class Watch:
    """A thread that ends this process when another rank has failed or gone: in NCCL or gloo it would wait for that one.

    `lost(rank, message)` is called on rank 0, once, for a rank that was not heard of any more. Rank 0 gone is seen by all, and
    where its node is silent (no power), by a second thread that misses the answers to the first.
    """

    def __init__(
        self,
        meeting: Meeting,
        lost: Callable[[int, str], None],
        leave: Callable[[int], None] = os._exit,
    ):
        self._ranks, self._lost, self._leave = meeting.ranks, lost, leave
        self._store = self._own_connection(meeting)
        self._closed = threading.Event()
        self._silent: Counter[int] = Counter()
        self._heard: dict[int, bytes] = {}
        self._unanswered = 0
        self._store.set(str(self._ranks.rank), "0")
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._run, self._miss_answers)
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _own_connection(meeting: Meeting) -> Any:
        """A waiting call of the main thread would hold up the meeting's own."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        seconds = timedelta(seconds=JOIN_SECONDS)
        return _prefixed(
            "watch",
            TCPStore(
                meeting.host, meeting.port, is_master=False, wait_for_workers=False, timeout=seconds
            ),
        )

    def fail(self, message: str) -> None:
        """Tell the other ranks that this one has failed; they end within a few seconds."""
        self._closed.set()
        try:
            if not self._store.check(["failed"]):
                self._store.set(
                    "failed", f"rank {self._ranks.rank} on {socket.gethostname()} failed: {message}"
                )
        except RuntimeError:
            return  # rank 0 has gone, which the others see
        self._let_others_hear()

    def close(self) -> None:
        """Stop watching: this rank is about to leave with its work done."""
        self._closed.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        beat = 0
        while not self._closed.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._store.set(str(self._ranks.rank), str(beat))
                if self._store.check(["failed"]):
                    self._end(self._store.get("failed").decode())
                elif self._ranks.leads:
                    self._look()
                self._unanswered = 0
            except RuntimeError:
                self._end("rank 0 or its node has gone")

    def _miss_answers(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            self._unanswered += 1
            if self._unanswered >= MISSED_BEATS:
                self._end(f"rank 0's node has not answered for {MISSED_BEATS * BEAT_SECONDS:.0f} s")

    def _look(self) -> None:
        for rank in range(1, self._ranks.world_size):
            heard = self._store.get(str(rank)) if self._store.check([str(rank)]) else b""
            self._silent[rank] = (
                self._silent[rank] + 1 if heard == self._heard.get(rank, b"") else 0
            )
            self._heard[rank] = heard
            # One that has never been heard of may still import what others have in their node's cache.
            patience = MISSED_BEATS if heard else JOIN_SECONDS / BEAT_SECONDS
            if self._silent[rank] >= patience:
                message = f"has not been heard of for {patience * BEAT_SECONDS:.0f} s: it was killed, or its node is gone"
                self._lost(rank, message)
                self._store.set("failed", f"rank {rank} {message}")
                return

    def _end(self, message: str) -> None:
        if not self._closed.is_set():
            print(f"rank {self._ranks.rank} ended: {message}", file=sys.stderr, flush=True)
            self._let_others_hear()
            self._leave(1)

    def _let_others_hear(self) -> None:
        """The store ends with rank 0, so that leaves last."""
        if self._ranks.leads and self._ranks.world_size > 1:
            time.sleep(2 * BEAT_SECONDS)
