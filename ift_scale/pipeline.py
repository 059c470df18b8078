"""Runs stages: finished artifacts are skipped, missing or outdated ones are made. It knows no stage by name."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ift_scale import stages
from ift_scale.config import Config
from ift_scale.io.locks import claimed
from ift_scale.io.manifests import MANIFEST, adopt, is_done, read_manifest
from ift_scale.io.progress import progress, say
from ift_scale.ranks.environment import Ranks
from ift_scale.ranks.rendezvous import Meeting
from ift_scale.stage import Context, Part, Stage, Task


class Pipeline:
    """The stages of one run. The arguments are those of `Context`."""

    def __init__(
        self,
        config: Config,
        ranks: Ranks | None = None,
        siblings: Sequence[Path] = (),
        part: Part | None = None,
        meeting: Meeting | None = None,
    ):
        loaded = [entry.load() for entry in stages.STAGES]
        self.context = Context(config, loaded, ranks, siblings, part, meeting)

    def run(self) -> None:
        """Make all stages, in order."""
        started = time.monotonic()
        self._check(None)
        for name in self.context.stages:
            self.make(name)
            self._check(name)
        say(f"all stages: {time.monotonic() - started:.0f} s")

    def _check(self, finished: str | None) -> None:
        for stage in self.context.stages.values():
            stage.check(self.context, finished)

    def make(self, name: str) -> None:
        """Make what is missing of one stage."""
        stage, meeting = self.context.stages[name], self.context.meeting
        if meeting is None or not stage.led:
            self._make(stage)
        elif self.context.leads:
            with meeting.leading():
                if not self._make(stage):
                    meeting.tell("")  # nothing to do, for no rank
        else:
            stage.follow(self.context)

    def _make(self, stage: Stage) -> bool:
        """Make what is missing; returns False if nothing is."""
        with self._claims(stage.tasks(self.context)) as tasks:
            pending = self._pending(stage, tasks)
            if not pending:
                return False
            total = stage.total(self.context, pending)
            with progress(stage.name, total) as bar:
                stage.run(self.context, pending, bar)
            _report(stage, pending, total)
            return True

    @contextmanager
    def _claims(self, tasks: list[Task]) -> Iterator[list[Task]]:
        """The tasks that no other command works on, held for the block. Without a part the run's folder itself is held."""
        if self.context.part is None or not self.context.leads:
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
                    f"{tasks[0].stage}: {len(tasks) - len(mine)} arms of this part are left to another command that works "
                    "on them"
                )
            yield mine

    def _pending(self, stage: Stage, tasks: list[Task]) -> list[Task]:
        """The tasks that are neither done nor taken over from a sibling."""
        left = [task for task in tasks if not task.done]
        pending = [task for task in left if not self._adopts(task)]
        _report_skipped(stage, len(tasks), len(tasks) - len(left), len(left) - len(pending))
        for task in pending if self.context.leads else []:
            # An old manifest must not vouch for new files if this run is killed between them.
            (task.folder / MANIFEST).unlink(missing_ok=True)
        return pending

    def _adopts(self, task: Task) -> bool:
        """Take over a sibling's artifact if it has the same key."""
        ranks = self.context.ranks
        if ranks is not None and ranks.world_size > 1:
            return False
        for root in self.context.siblings:
            source = root / task.folder.relative_to(self.context.root)
            if is_done(source, task.key):
                adopt(source, task.folder)
                return True
        return False


def _report_skipped(stage: Stage, num_tasks: int, done: int, adopted: int) -> None:
    if done:
        say(f"{stage.name}: {f'{done} of {num_tasks} arms ' if stage.per_arm else ''}done already")
    if adopted:
        arms = f"{adopted} arms " if stage.per_arm else ""
        say(f"{stage.name}: {arms}taken over from another variant")


def _report(stage: Stage, made: Sequence[Task], total: int | None) -> None:
    """Print the first counts of the manifest, or how many arms were made."""
    if stage.per_arm:
        counted = f", {total} {stage.unit}" if stage.unit != "arms" else ""
        say(f"{stage.name}: {len(made)} arms{counted}")
        return
    manifest = read_manifest(made[0].folder)
    if manifest is None:
        return  # another rank merges
    counts = ", ".join(f"{name} {value:g}" for name, value in list(manifest.counts.items())[:6])
    say(f"{stage.name}: {counts} ({manifest.seconds['total']:.1f} s)")
