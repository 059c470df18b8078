"""One start of a command on the embedded world, seen from outside: processes, files, events."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
MARK = "IFT_SCALE_KILLS_RUN"
"""Environment variable that all processes of an attempt inherit."""
SETTINGS = (
    "construct.domains=[medicine]",
    "construct.settings=[harmonious, incompatible]",
    "construct.size=24",
    "construct.seeds=[0]",
    "probe.engine=transformers",
    "probe.chunk_size=160",
    "evaluate.engine=transformers",
    "evaluate.chunk_size=100",
    "train.epochs=3",
    "train.global_batch_size=8",
    "train.log_every=1",
    "train.checkpoint.every=3",
    "train.live.every=6",
)
"""Two arms of 18 steps, and checkpoints of about 3 MB."""
ARMS = ("medicine-harmonious-seed0", "medicine-incompatible-seed0")


class Process(NamedTuple):
    """A process of an attempt. `rank`: its RANK, None if it has none."""

    pid: int
    command: str
    rank: int | None

    @property
    def is_launcher(self) -> bool:
        return "deepspeed.launcher" in self.command

    @property
    def is_rank(self) -> bool:
        return "ift_scale.train.worker" in self.command and not self.is_launcher

    @property
    def is_engine(self) -> bool:
        return "ift_scale.engines.process" in self.command


def processes_of(mark: str) -> Iterator[Process]:
    """Yields all processes with this value of MARK, except those that have ended (zombies)."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            if wanted not in variables:
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        rank = next((v.removeprefix(b"RANK=") for v in variables if v.startswith(b"RANK=")), None)
        yield Process(int(entry.name), command, None if rank is None else int(rank))


class Attempt:
    """A running `ift-scale STAGE` into `folder`, whose output is appended to FOLDER.out.

    The folder's path is the attempt's MARK.
    """

    def __init__(
        self,
        folder: Path,
        overrides: tuple[str, ...] = (),
        stage: str = "run",
        settings: tuple[str, ...] = SETTINGS,
    ):
        self.folder, self.mark = folder, str(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        sets = [f"output_dir={folder}", *settings, *overrides]
        command = [sys.executable, "-m", "ift_scale.cli", stage, "configs/demo.yaml"]
        command += [part for text in sets for part in ("--set", text)]
        self._log = folder.with_name(f"{folder.name}.out")
        self._from = self._log.stat().st_size if self._log.exists() else 0
        self.started = time.time()
        with self._log.open("a") as out:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1"},
                stdout=out,
                stderr=subprocess.STDOUT,
                # A shell starts background jobs with SIGINT ignored, which children inherit.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
            )

    @property
    def output(self) -> str:
        return self._log.read_bytes()[self._from :].decode(errors="replace")

    def exists(self, pattern: str) -> bool:
        return next(self.folder.glob(pattern), None) is not None

    def count(self, pattern: str) -> int:
        return sum(1 for _ in self.folder.glob(pattern))

    def is_done(self, stage: str) -> bool:
        """True if every artifact of the stage has its manifest."""
        if stage in ("train", "evaluate"):
            return all(self.exists(f"{stage}/{arm}/manifest.json") for arm in ARMS)
        return self.exists(f"{stage}/manifest.json")

    def is_new(self, name: str) -> bool:
        """True if this attempt has written the file."""
        path = self.folder / name
        # The clock of files is up to a tick behind.
        return path.exists() and path.stat().st_mtime > self.started - 0.01

    def events(self) -> list[dict[str, Any]]:
        """The whole lines of this attempt's events of training."""
        if not self.is_new("logs/train-events.jsonl"):
            return []
        text = (self.folder / "logs" / "train-events.jsonl").read_bytes()
        return [json.loads(line) for line in text.split(b"\n")[:-1]]

    def newest_arm(self) -> list[str]:
        """The kinds of the newest arm's events, such as ["arm", "begun", "step", "step"]."""
        kinds = [event["event"] for event in self.events()]
        if "arm" not in kinds:
            return []
        return kinds[len(kinds) - 1 - kinds[::-1].index("arm") :]

    def step(self) -> tuple[int, int]:
        """The newest step of this attempt's newest arm, and the number of its steps; or 0, 0."""
        events = self.events()
        if not events or "step" not in self.newest_arm():
            return 0, 0
        newest = [event for event in events if event["event"] == "step"][-1]
        return newest["step"], newest["of"]

    def processes(self) -> list[Process]:
        return list(processes_of(self.mark))

    def wait(self, limit: float) -> int:
        """Returns the exit code of the command; kills all of it and raises after `limit` s."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Kills whatever is left of the attempt."""
        while found := self.processes():
            for process in found:
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
