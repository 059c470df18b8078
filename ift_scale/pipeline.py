"""Runs stages: skips finished artifacts, produces missing or outdated ones. It names no stage."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

from ift_scale import stages
from ift_scale.config import Config
from ift_scale.errors import ConfigError
from ift_scale.io.locks import claimed
from ift_scale.io.manifests import MANIFEST, adopt, is_done, read_manifest
from ift_scale.io.progress import progress, say
from ift_scale.ranks.environment import Ranks
from ift_scale.ranks.heartbeat import Heartbeat
from ift_scale.ranks.rendezvous import Rendezvous
from ift_scale.ranks.store import StoreError
from ift_scale.stage import Context, Part, Stage, Task


def load_stage(name: str) -> Stage:
    """Imports `STAGE` from the stage's folder."""
    stage: Stage = import_module(f"ift_scale.{name}.run").STAGE
    return stage


class Pipeline:
    """The stages of one run. Takes the arguments of `Context`."""

    def __init__(
        self,
        config: Config,
        ranks: Ranks | None = None,
        siblings: Sequence[Path] = (),
        part: Part | None = None,
        rendezvous: Rendezvous | None = None,
    ):
        loaded = [load_stage(entry.name) for entry in stages.STAGES]
        self.context = Context(config, loaded, ranks, siblings, part, rendezvous)

    def run(self) -> None:
        """Runs all stages in order."""
        started = time.monotonic()
        self._check(None)
        for stage in stages.stages_of(self.context.config):
            self.make(stage.name)
            self._check(stage.name)
        say(f"all stages: {time.monotonic() - started:.0f} s")

    def _check(self, finished: str | None) -> None:
        for stage in stages.stages_of(self.context.config):
            self.context.stages[stage.name].check(self.context, finished)

    def make(self, name: str) -> None:
        """Produces the missing artifacts of one stage.

        Raises ConfigError if the settings leave it out.
        """
        entry = next(entry for entry in stages.STAGES if entry.name == name)
        if problem := entry.missing(self.context.config):
            raise ConfigError(str(self.context.root / "config.yaml"), [problem])
        stage, rendezvous = self.context.stages[name], self.context.rendezvous
        if rendezvous is None or not stage.led:
            self._make(stage)
        elif self.context.is_rank_zero:
            with rendezvous.leading():
                if not self._make(stage):
                    rendezvous.broadcast("")  # no rank has anything to do
        else:
            stage.follow(self.context)

    def make_alone(self, name: str) -> None:
        """Produces one stage on rank 0, while other ranks wait."""
        rendezvous = self.context.rendezvous
        if rendezvous is None:
            self.make(name)
        elif self.context.is_rank_zero:
            with rendezvous.leading():
                self.make(name)
            rendezvous.broadcast("")
        else:
            rendezvous.receive()

    def _make(self, stage: Stage) -> bool:
        """Produces the missing artifacts; returns False if none is missing."""
        with self._claims(stage.tasks(self.context)) as tasks:
            self.context.check_inputs(stage)
            pending = self._pending(stage, tasks)
            if not pending:
                return False
            self.context.check_inputs(stage, pending)
            total = stage.total(self.context, pending)
            with progress(stage.name, total) as bar, self._watched(stage):
                stage.run(self.context, pending, bar)
            _report(stage, pending, total)
            return True

    @contextmanager
    def _watched(self, stage: Stage) -> Iterator[None]:
        """Ends the ranks that share the stage if they hang. The ranks that train do so themselves.

        A rank that fails or is killed ends no other: they take over its work.
        """
        rendezvous, limit = self.context.rendezvous, stage.hang_limit(self.context.config)
        if rendezvous is None or not limit:
            yield
            return
        name = str(self.context.folder(stage.name))

        def hangs(rank: int | None, message: str) -> None:
            say(f"{stage.name}: {message}")

        try:
            heartbeat = Heartbeat(rendezvous, hangs, name=name, limit=limit, survives=True)
        except (OSError, StoreError):
            yield  # rank 0 has left with its work done
            return
        try:
            yield
        finally:
            heartbeat.close()

    @contextmanager
    def _claims(self, tasks: list[Task]) -> Iterator[list[Task]]:
        """Yields the tasks that no other command works on, and holds them for the block.

        Without a part, the run's folder itself is locked, and all tasks are returned.
        """
        if self.context.part is None or not self.context.is_rank_zero:
            yield tasks
            return
        with ExitStack() as held:
            mine = [
                task
                for task in tasks
                if held.enter_context(claimed(task.folder.parent / ".claims" / task.folder.name))
            ]
            if len(mine) < len(tasks):
                say(
                    f"{tasks[0].stage}: skipped {len(tasks) - len(mine)} arms of this part that "
                    "another command is working on"
                )
            yield mine

    def _pending(self, stage: Stage, tasks: list[Task]) -> list[Task]:
        """Returns the tasks that are neither done nor reused from a sibling."""
        left = [task for task in tasks if not task.done]
        pending = [task for task in left if not self._adopts(task)]
        _report_skipped(stage, len(tasks), len(tasks) - len(left), len(left) - len(pending))
        for task in pending if self.context.is_rank_zero else []:
            # Killed between the two, a run must not leave an old manifest next to new files.
            (task.folder / MANIFEST).unlink(missing_ok=True)
        return pending

    def _adopts(self, task: Task) -> bool:
        """Reuses a sibling's artifact if it has the same key; returns True if there is one."""
        ranks = self.context.ranks
        if ranks is not None and ranks.world_size > 1:
            return False
        for root in self.context.siblings:
            source = root / task.folder.relative_to(self.context.root)
            manifest = read_manifest(source)
            if manifest is not None and not manifest.edited and is_done(source, task.key):
                adopt(source, task.folder)
                return True
        return False


def _report_skipped(stage: Stage, num_tasks: int, done: int, adopted: int) -> None:
    if done:
        arms = f"{done} of {num_tasks} arms " if stage.per_arm else ""
        say(f"{stage.name}: {arms}done already")
    if adopted:
        arms = f"{adopted} arms " if stage.per_arm else ""
        say(f"{stage.name}: {arms}reused from another variant")


def _report(stage: Stage, made: Sequence[Task], total: int | None) -> None:
    """Prints the first counts of the manifest, or the number of arms."""
    if stage.per_arm:
        counted = f", {total} {stage.unit}" if stage.unit != "arms" else ""
        say(f"{stage.name}: {len(made)} arms{counted}")
        return
    manifest = read_manifest(made[0].folder)
    if manifest is None:
        return  # another rank merges the shards
    counts = ", ".join(f"{name} {value:g}" for name, value in list(manifest.counts.items())[:6])
    say(f"{stage.name}: {counts} ({manifest.seconds['total']:.1f} s)")
