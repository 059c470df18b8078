"""The train stage: tokenise the arms that are missing, then train all of them with one warm group of ranks.

The ranks are started and followed here; or this command itself is one of them, if srun, torchrun or deepspeed started it.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from ift_scale.config import Config, precision_in_force
from ift_scale.config.train import settings_of_result
from ift_scale.errors import EnvironmentProblem, Stopped
from ift_scale.io.files import log_tail, remove_incomplete, write_json
from ift_scale.io.manifests import digest_of, is_done
from ift_scale.io.progress import Bar, say
from ift_scale.ranks.rendezvous import Meeting, Refused
from ift_scale.records import PROBE_FILE, QUESTIONS_FILE, Arm
from ift_scale.stage import Context, Stage, Task
from ift_scale.train import job
from ift_scale.train.data.cache import share_tokens
from ift_scale.train.engine import checkpoint_manifest
from ift_scale.train.launch import hostfile, launcher, stop
from ift_scale.train.live import questions as live_questions
from ift_scale.train.monitor.progress import ProgressReporter
from ift_scale.train.prepare import check_memory, prepare


class TrainStage(Stage):
    name = "train"
    version = 2
    per_arm = True
    led = True

    def check(self, context: Context, finished: str | None) -> None:
        if finished is None:
            hostfile.with_ranks(context.config, context.ranks)

    def tasks(self, context: Context) -> list[Task]:
        config = context.config
        in_force = {"precision": precision_in_force(config.train)}
        settings = [settings_of_result(config.train) | in_force, config.evaluate.template]
        sets = context.finished(context.task("construct")).files
        # Live knowledge changes what is learnt only if it may end an arm.
        asked: dict[str, str] = {}
        if config.train.live.early_stopping is not None:
            asked = {
                "questions": context.digest("questions", QUESTIONS_FILE),
                "probe": context.digest("probe", PROBE_FILE),
            }
        tasks = []
        for arm in context.arms_of_part():
            inputs = {"model": context.base_digest, "set": sets[f"{arm.name}.jsonl"]} | asked
            key = digest_of([self.version, settings, arm.model_dump(), inputs])
            tasks.append(Task(self.name, context.folder(self.name, arm), key, inputs, arm))
        return tasks

    def total(self, context: Context, pending: Sequence[Task]) -> int:
        return len(pending)

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        folder, sets = context.folder(self.name), context.folder("construct")
        share_tokens(folder, [root / self.name for root in context.siblings])
        part = context.part.suffix if context.part else ""
        seconds = train(
            hostfile.with_ranks(context.config, context.ranks),
            folder,
            context.model_path,
            [(t, t.arm, sets / f"{t.arm.name}.jsonl") for t in pending if t.arm],
            context.logs,
            bar,
            live_source(context),
            context.meeting,
            part,
        )
        write_json(context.logs / f"train{part}-seconds.json", seconds)

    def follow(self, context: Context) -> None:
        if context.meeting is not None:
            follow(context.meeting)


def live_source(context: Context) -> live_questions.Source | None:
    """What live knowledge is asked from; None if the base model was not probed, which the authors' sets do not need."""
    path = context.folder("probe") / PROBE_FILE
    if not path.is_file():
        say("train: no live knowledge, since the base model was not probed")
        return None
    return live_questions.Source(context.question_file(), path)


def train(
    config: Config,
    folder: Path,
    model_path: Path,
    pending: Sequence[tuple[Task, Arm, Path]],
    logs: Path,
    bar: Bar,
    live: live_questions.Source | None = None,
    meeting: Meeting | None = None,
    part: str = "",
) -> dict[str, float]:
    """Train the pending arms (task, arm, set file) into FOLDER/ARM; returns seconds to the first step by part.

    `live`: what live knowledge is asked from; there is none without it. `meeting`: of the ranks that a launcher has started this
    command as, rank 0 of which calls this and the others `follow`; without it, ranks are started here. `part` distinguishes the
    files of several calls that work in one folder.
    """
    started = time.monotonic()
    work = prepare(config, folder, model_path, pending, logs, bar, live, part)
    job_path, events, log = (
        folder / f".job{part}.json",
        logs / f"train{part}-events.jsonl",
        logs / f"train{part}.log",
    )
    stop_file = Path(work.stop_file or "")
    if meeting is None:
        check_memory(work)
    job.write(work, job_path)
    logs.mkdir(parents=True, exist_ok=True)
    for old in (stop_file, events):
        old.unlink(missing_ok=True)
    reporter = ProgressReporter(bar, {"tokenise": time.monotonic() - started})
    try:
        if meeting is None:
            _launch(config, job_path, events, stop_file, log, reporter)
        else:
            meeting.tell(json.dumps([work.model_dump_json(), str(events.resolve())]))
            _serve(work, meeting, job.Events(events, show=reporter.show))
    finally:
        stop_file.unlink(missing_ok=True)
        for made in (Path(arm.folder) for arm in work.arms):
            remove_incomplete(made.parent, made.name)
            remove_incomplete(checkpoint_manifest.folder_of(made))
    missing = [work.arm.name for work in work.arms if not is_done(Path(work.folder), work.key)]
    if missing:
        last = f"\n{log_tail(log)}" if meeting is None else ""
        raise EnvironmentProblem(
            f"the ranks ended and left arms undone: {', '.join(missing)}{last}"
        )
    return reporter.seconds


def _launch(
    config: Config,
    job_path: Path,
    events: Path,
    stop_file: Path,
    log: Path,
    reporter: ProgressReporter,
) -> None:
    """Start the ranks and follow them to the end."""
    reporter.bar.note(f"starting {config.train.num_ranks} ranks")
    group = launcher.Group(config.train, job_path, events, log)
    halted: dict[str, object] | None = None
    try:
        for event in launcher.follow(group, events):
            reporter.show(event)
            if event["event"] == "stopped":
                halted = event
    except (Stopped, KeyboardInterrupt):
        say("train: the ranks save after the step they are in (a second signal ends them at once)")
        raise stop.stop(group, stop_file, events) from None
    finally:
        group.end()
    if halted is not None:
        raise stop.stopped(halted)


def follow(meeting: Meeting) -> None:
    """On all ranks but the first: wait until it has made the job, and work on it together."""
    word = meeting.hear()
    if word:
        work, events = json.loads(word)
        _serve(job.Job.model_validate_json(work), meeting, job.Events(Path(events), writes=False))


def _serve(work: job.Job, meeting: Meeting, events: job.Events) -> None:
    """Be one of the ranks. Where they stop, the first leaves last (`Meeting.leading`): the launcher's exit code is its 75."""
    from ift_scale.train import worker  # imports deepspeed
    from ift_scale.train.launch.control import Interrupted

    try:
        worker.serve(work, meeting, events)
    except Interrupted as stopped:
        if not meeting.ranks.leads:
            raise Refused(0) from None
        raise stop.stopped({"name": stopped.arm, "step": stopped.step}) from None


STAGE = TrainStage()
