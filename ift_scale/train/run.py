"""The train stage: tokenises the pending arms, then trains all of them with one group of ranks.

This command starts the ranks and follows them, or is itself one of them if srun, torchrun or
deepspeed started it.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from ift_scale.config import Config, precision_in_force
from ift_scale.config.train import settings_of_result
from ift_scale.errors import EnvironmentProblem, Stopped
from ift_scale.io.files import log_tail, remove_incomplete, write_json
from ift_scale.io.manifests import digest_of, file_digest, is_done
from ift_scale.io.progress import Bar, say
from ift_scale.ranks.rendezvous import Rendezvous
from ift_scale.records import PROBE_FILE, QUESTIONS_FILE, Arm
from ift_scale.stage import Context, Stage, Task, trained_arm
from ift_scale.train import derived, job, worker
from ift_scale.train.data.cache import share_tokens
from ift_scale.train.engine import checkpoint_manifest
from ift_scale.train.launch import hostfile, launcher, stop
from ift_scale.train.live import questions as live_questions
from ift_scale.train.monitor.progress import ProgressReporter
from ift_scale.train.prepare import check_memory, prepare
from ift_scale.treatments import dose_of


class TrainStage(Stage):
    name = "train"
    reads = (
        f"questions/{QUESTIONS_FILE}",
        f"probe/{PROBE_FILE}",
        "construct/*.jsonl",
    )
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
        # Live knowledge affects the weights only through early stopping, a validation file through
        # the selection of the weights.
        more: dict[str, str] = {}
        if config.train.live.early_stopping is not None:
            more = {
                "questions": context.digest("questions", QUESTIONS_FILE),
                "probe": context.digest("probe", PROBE_FILE),
            }
        validation = config.train.validation
        if validation.selects and validation.path is not None:
            more["validation"] = file_digest(Path(validation.path))
        if config.train.kl.text is not None:
            more["text"] = file_digest(Path(config.train.kl.text.path))
        tasks = []
        for arm in context.arms_of_part():
            trained, dose = trained_arm(arm), dose_of(arm.setting)
            inputs = {"model": context.base_digest, "set": sets[f"{trained.name}.jsonl"]} | more
            key = digest_of([self.version, settings, trained.model_dump(), inputs])
            if dose.kind is not None:
                inputs |= {"trained": key}
                # Averages came first, and keep their keys.
                kind = [] if dose.kind == "average" else [dose.kind]
                key = digest_of([derived.VERSIONS[dose.kind], *kind, dose.amount, key])
            tasks.append(Task(self.name, context.folder(self.name, arm), key, inputs, arm))
        return tasks

    def total(self, context: Context, pending: Sequence[Task]) -> int:
        return len(pending)

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        to_train = [task for task in pending if task.arm and trained_arm(task.arm) == task.arm]
        derived.check(context)
        if to_train:
            self._train(context, to_train, bar)
        elif context.rendezvous is not None:
            context.rendezvous.broadcast("")  # the other ranks have nothing to do
        for task in pending:
            if task not in to_train:
                derived.make(context, task)
                bar.advance()

    def _train(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
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
            context.rendezvous,
            part,
        )
        write_json(context.logs / f"train{part}-seconds.json", seconds)

    def follow(self, context: Context) -> None:
        if context.rendezvous is not None:
            follow(context.rendezvous)


def live_source(context: Context) -> live_questions.LiveSource | None:
    """Returns the questions and answers for live knowledge; None if the base model was not probed.

    The authors' published sets need no probe.
    """
    path = context.folder("probe") / PROBE_FILE
    if not path.is_file():
        say("train: no live knowledge, because the base model was not probed")
        return None
    return live_questions.LiveSource(context.question_file(), path)


def train(
    config: Config,
    folder: Path,
    model_path: Path,
    pending: Sequence[tuple[Task, Arm, Path]],
    logs: Path,
    bar: Bar,
    live: live_questions.LiveSource | None = None,
    rendezvous: Rendezvous | None = None,
    part: str = "",
) -> dict[str, float]:
    """Train the pending arms (task, arm, set file) into FOLDER/ARM.

    Returns the seconds from the start to the first step, by phase. `live`: source of the live
    questions; None for no live knowledge. `rendezvous`: the ranks as which a launcher started this
    command; rank 0 calls this function and the others call `follow`. None starts ranks here. `part`
    distinguishes the files of several commands that work in one folder.
    """
    started = time.monotonic()
    work = prepare(config, folder, model_path, pending, logs, bar, live, part)
    job_path = folder / f".job{part}.json"
    events, log = logs / f"train{part}-events.jsonl", logs / f"train{part}.log"
    stop_file = Path(work.stop_file or "")
    if rendezvous is None:
        check_memory(work)
    job.write(work, job_path)
    logs.mkdir(parents=True, exist_ok=True)
    for old in (stop_file, events):
        old.unlink(missing_ok=True)
    reporter = ProgressReporter(bar, {"tokenise": time.monotonic() - started})
    try:
        if rendezvous is None:
            _launch(config, job_path, events, stop_file, log, reporter)
        else:
            rendezvous.broadcast(json.dumps([work.model_dump_json(), str(events.resolve())]))
            _run_rank(work, rendezvous, job.Events(events, show=reporter.show))
    finally:
        stop_file.unlink(missing_ok=True)
        for artifact in (Path(arm.folder) for arm in work.arms):
            remove_incomplete(artifact.parent, artifact.name)
            remove_incomplete(checkpoint_manifest.folder_of(artifact))
    missing = [work.arm.name for work in work.arms if not is_done(Path(work.folder), work.key)]
    if missing:
        last = f"\n{log_tail(log)}" if rendezvous is None else ""
        raise EnvironmentProblem(
            f"training ended before these arms finished: {', '.join(missing)}{last}"
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
    processes = launcher.RankProcesses(config.train, job_path, events, log)
    stopped: dict[str, object] | None = None
    try:
        for event in launcher.follow(processes, events):
            reporter.show(event)
            if event["event"] == "stopped":
                stopped = event
    except (Stopped, KeyboardInterrupt):
        say("train: saving after the current step (a second signal ends the ranks immediately)")
        raise stop.request_stop(processes, stop_file, events) from None
    finally:
        processes.end()
    if stopped is not None:
        raise stop.stopped_error(stopped)


def follow(rendezvous: Rendezvous) -> None:
    """Wait, on all ranks but rank 0, for the job that rank 0 prepares, and train it together."""
    message = rendezvous.receive()
    if message:
        work, events = json.loads(message)
        _run_rank(
            job.Job.model_validate_json(work), rendezvous, job.Events(Path(events), writes=False)
        )


def _run_rank(work: job.Job, rendezvous: Rendezvous, events: job.Events) -> None:
    """Train as one of the ranks. If they are stopped, rank 0 reports it."""
    try:
        worker.run(work, rendezvous, events, worker.import_trainer())
    except job.Interrupted as stopped:
        rendezvous.end_stopped()
        raise stop.stopped_error({"name": stopped.arm, "step": stopped.step}) from None


STAGE = TrainStage()
