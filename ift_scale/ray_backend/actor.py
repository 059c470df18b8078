"""A rank in a Ray actor: reports on its node, then works on a shared stage until it is finished.

Ray ships this module by value, and it imports nothing of IFT-Scale before `work`. A node without
IFT-Scale or with another version can therefore still be reported by name. Results are plain data,
which the driver turns into errors of IFT-Scale.
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
# Time within which a network file system must show a file that another node has just written.
_VISIBLE_SECONDS = 5.0


class Order(NamedTuple):
    """The work of one rank.

    `config` is JSON. `key` is the digest that all ranks must agree on. `folder` is the base of
    relative paths.
    """

    stage: str
    config: str
    rank: int
    world_size: int
    on_gpu: bool
    key: str
    folder: str
    log: str


def versions_here(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of the packages and a digest of IFT-Scale's code.

    The digest is needed because a checkout keeps its version while it is edited.
    """
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = NOT_INSTALLED
    return versions | {CODE: _code_digest()}


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
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not path.is_file():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


class Rank:
    """The actor. Its two threads allow `stop` to be called while `work` is running."""

    def __init__(self) -> None:
        self._stopping = threading.Event()

    def facts(self, packages: Sequence[str], token: str) -> dict[str, Any]:
        """Returns {host, versions, sees}; `sees` is True if the driver's file `token` exists."""
        return {
            "host": socket.gethostname(),
            "versions": versions_here(packages),
            "sees": _sees(Path(token)),
        }

    def work(self, order: Order) -> dict[str, Any] | None:
        """Works until the stage is finished, and writes the stage's output to the order's log.

        Returns None, or {text, exit_code} of the error that ended it. For a bug, `exit_code` is
        None and `text` is the traceback.
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
        """Makes `work` end its engines and return within about a second."""
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
            "this node has GPUs that Ray does not know about; start Ray there with --num-gpus"
        )
    if order.on_gpu and not has_gpu():
        raise EnvironmentProblem(
            "Ray assigns GPUs on this node, but torch there is a CPU build, or there is no "
            "/dev/nvidia*"
        )
    ranks = Ranks(order.rank, 0, order.world_size, watch=watch)
    pipeline = Pipeline(Config.model_validate_json(order.config), ranks)
    if pipeline.context.key_of(order.stage) != order.key:
        raise ArtifactError(
            "the model or the questions' sources on this node differ from those on the node that "
            f"runs the {order.stage} command. All paths of the configuration must lead to the same "
            "files on all nodes."
        )
    pipeline.make(order.stage)
