"""A rank in a Ray actor: tells about its node, then works on a shared stage until nothing is left of it.

Ray ships this module by value, and nothing of ours is imported before `work`: so a node that lacks ift-scale, or has another
version, can still be told by its name. What goes back is plain: the driver makes an error of ours of it.
"""

import hashlib
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

CODE = "code of ift-scale"
NOT_INSTALLED = "not installed"
_SECONDS_TO_SEE = (
    5.0  # until a file that another node has just written is seen on a network file system
)


class Order(NamedTuple):
    """The work of one rank: `config` is JSON, `key` what all ranks must agree on, `folder` where relative paths begin."""

    stage: str
    config: str
    rank: int
    world_size: int
    on_gpu: bool
    key: str
    folder: str
    log: str


def versions_here(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the packages, and a digest of ift-scale's code: a checkout keeps its version while it is changed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = NOT_INSTALLED
    return found | {CODE: _code_digest()}


def _code_digest() -> str:
    spec = find_spec("ift_scale")
    if spec is None or spec.origin is None:
        return NOT_INSTALLED
    root = Path(spec.origin).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _sees(path: Path) -> bool:
    deadline = time.monotonic() + _SECONDS_TO_SEE
    while not path.is_file():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


class Rank:
    """The actor. `stop` may be called while `work` goes on (two threads)."""

    def __init__(self) -> None:
        self._stopping = threading.Event()

    def facts(self, packages: Sequence[str], token: str) -> dict[str, Any]:
        """{host, versions, sees}: `sees` is whether the file `token` of the driver is seen here."""
        return {
            "host": socket.gethostname(),
            "versions": versions_here(packages),
            "sees": _sees(Path(token)),
        }

    def work(self, order: Order) -> dict[str, Any] | None:
        """Work until nothing is left; None, or {text, exit_code} of what ended it (exit_code None: a defect of ours, traced).

        What the stage says goes to the order's log.
        """
        from ift_scale.errors import IFTScaleError, Stopped

        with (
            Path(order.log).open("a", encoding="utf-8") as log,
            redirect_stdout(log),
            redirect_stderr(log),
        ):
            try:
                _work_on(order, self._watch)
            except (IFTScaleError, Stopped) as error:
                return {"text": str(error), "exit_code": error.exit_code}
            except Exception:
                return {"text": traceback.format_exc(), "exit_code": None}
        return None

    def stop(self) -> None:
        """Have `work` end its engines and return, within a second or so."""
        self._stopping.set()

    def _watch(self) -> None:
        from ift_scale.errors import Stopped

        if self._stopping.is_set():
            raise Stopped("stopped by the driver")


def _work_on(order: Order, watch: Callable[[], None]) -> None:
    from ift_scale.config import Config
    from ift_scale.errors import ArtifactError, EnvironmentProblem
    from ift_scale.pipeline import Pipeline
    from ift_scale.ranks.environment import Ranks, has_gpu

    if Path(order.folder).is_dir():
        os.chdir(order.folder)
    if has_gpu() and not order.on_gpu:
        raise EnvironmentProblem(
            "this node has GPUs that Ray does not know of; start Ray there with --num-gpus"
        )
    if order.on_gpu and not has_gpu():
        raise EnvironmentProblem(
            "Ray gives this node's ranks GPUs, but torch there is a CPU build, or there is no /dev/nvidia*"
        )
    ranks = Ranks(order.rank, 0, order.world_size, watch=watch)
    pipeline = Pipeline(Config.model_validate_json(order.config), ranks)
    if pipeline.context.key_of(order.stage) != order.key:
        raise ArtifactError(
            f"the model or the questions' sources are not the same here as where the {order.stage} command runs. Every path of the "
            "configuration must hold the same files on all nodes."
        )
    pipeline.make(order.stage)
