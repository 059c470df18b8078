"""The train stage: tokenise the arms that are missing, then train all of them with one warm group of ranks.

The ranks are started and followed here; or this command itself is one of them, where srun, torchrun or deepspeed has started it.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ift_scale.config import Config
from ift_scale.engines.model_folder import hidden_size, model_config
from ift_scale.errors import EnvironmentProblem, Place, Stopped
from ift_scale.estimate import auto, host
from ift_scale.estimate.shape import ModelShape, require_proven
from ift_scale.io.files import link_or_copy, log_tail, remove_incomplete
from ift_scale.io.locks import made_once
from ift_scale.io.manifests import digest_of, file_digest, is_done
from ift_scale.io.progress import Bar, say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks.environment import has_gpu
from ift_scale.ranks.rendezvous import Meeting, Refused
from ift_scale.records import Arm
from ift_scale.scoring.embedding import Surplus
from ift_scale.train import job
from ift_scale.train.data import dataset
from ift_scale.train.engine import checkpoint_manifest, export_tokenizer
from ift_scale.train.launch import launcher, stop
from ift_scale.train.live import questions
from ift_scale.train.live import tokens as live_tokens
from ift_scale.train.monitor import trackers
from ift_scale.train.monitor.progress_line import progress_line

VERSION = 2
STAGE = "train"
TOKENS = ".tokens"
TOKENS_VERSION = 2


def tokenized(set_path: Path, cache: Path, tokenizer: PromptTokenizer, config: Config) -> Path:
    """The set's token file, made where the same set, tokenizer, template and lengths have none yet."""
    template = tokenizer.chat(config.evaluate.template).source
    settings = [
        TOKENS_VERSION,
        template,
        config.train.max_length,
        config.train.too_long,
        config.train.supervise,
    ]
    path = (
        cache
        / f"{digest_of([file_digest(set_path), dataset.tokenizer_digest(tokenizer), settings])[:16]}.npz"
    )
    if not path.is_file():
        with made_once(path) as missing:
            if missing:
                dataset.save(
                    dataset.tokenize(set_path, tokenizer, config.evaluate.template, config.train),
                    path,
                )
    dataset.check_enough(dataset.load(path), set_path, config.train)
    return path


def share_tokens(folder: Path, others: Sequence[Path]) -> None:
    """Have the token files of other train folders here too: their names are digests of all that made them."""
    for path in sorted(path for other in others for path in (other / TOKENS).glob("*.npz")):
        if not (folder / TOKENS / path.name).exists():
            link_or_copy(path, folder / TOKENS / path.name)


def run(
    config: Config,
    folder: Path,
    model_path: Path,
    pending: list[tuple[Arm, Path, str, dict[str, str]]],
    logs: Path,
    bar: Bar,
    live: questions.Source | None = None,
    meeting: Meeting | None = None,
    part: str = "",
) -> dict[str, float]:
    """Train the pending arms (arm, set file, key, inputs) into FOLDER/ARM; returns seconds to the first step by part.

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
    told = _Told(bar, {"tokenise": time.monotonic() - started})
    try:
        if meeting is None:
            _launch(config, job_path, events, stop_file, log, told)
        else:
            meeting.tell(json.dumps([work.model_dump_json(), str(events.resolve())]))
            _serve(work, meeting, job.Events(events, show=told.show))
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
    return told.seconds


def prepare(
    config: Config,
    folder: Path,
    model_path: Path,
    pending: list[tuple[Arm, Path, str, dict[str, str]]],
    logs: Path,
    bar: Bar,
    live: questions.Source | None,
    part: str,
) -> job.Job:
    """All that can be done, and found wrong, before there are ranks: the job that they are given."""
    from ift_scale.engines import weights  # imports torch

    require_proven(model_config(model_path), model_path / "config.json")
    weights.check(model_path)
    check_kernels(config, model_path)
    trackers.check(config.train.trackers)
    bar.note("tokenising")
    tokenizer = PromptTokenizer(model_path)
    arms = [
        job.ArmJob(
            arm=arm,
            source=str(path),
            tokens=str(tokenized(path, folder / TOKENS, tokenizer, config)),
            folder=str(folder / arm.name),
            key=key,
            inputs=inputs,
        )
        for arm, path, key, inputs in pending
    ]
    export_tokenizer.check_before_training(
        tokenizer, config.evaluate.template, [path for _, path, _, _ in pending]
    )
    for arm in arms:
        checkpoint_manifest.latest(
            arm
        )  # one of another model or set is told before the ranks are started
    if live is not None and config.train.live.every != 0:
        asked = questions.jobs(
            live, arms, config, tokenizer, folder / TOKENS, hidden_size(model_path)
        )
        arms = [arm.model_copy(update={"live": asked.get(arm.arm.name)}) for arm in arms]
    check_ids(arms, Surplus(tokenizer, model_path))
    return job.Job(
        model_path=str(model_path),
        hidden_size=hidden_size(model_path),
        template=config.evaluate.template,
        logs=str(logs),
        train=config.train,
        stop_file=str((folder / f".stop{part}").resolve()),
        arms=arms,
    )


def check_memory(work: job.Job) -> None:
    """EnvironmentProblem where the ranks would be started on this node's CPUs and no setting fits into its memory."""
    if not has_gpu() and not work.train.hostfile:
        shape = ModelShape.from_config(model_config(Path(work.model_path)))
        room = auto.Room(None, work.train.num_ranks, work.train.num_ranks, host.available())
        auto.resolve(work.train, shape, room, job.most_tokens(work, room.world_size))


def check_kernels(config: Config, model_path: Path) -> None:
    """ConfigError for kernels that were asked for by name and cannot compute the model, or cannot run on this node's devices."""
    if config.train.kernels not in ("auto", "pytorch"):
        from ift_scale.train.model import kernels, packed  # imports torch

        kernels.check(config.train.kernels, packed.without_weights(model_path))
        if not config.train.hostfile:
            device = "cuda" if has_gpu() else "cpu"
            kernels.choose(config.train.kernels, device, [], kernels.available(device))


def check_ids(arms: Sequence[job.ArmJob], surplus: Surplus) -> None:
    """DataError for a token that an arm trains on, or is asked about live, and that the embedding has no row for."""
    for arm in arms if surplus else ():
        tokens = dataset.load(Path(arm.tokens))
        for number, ids in enumerate(tokens.examples(), start=1):
            surplus.refuse(ids.tolist(), Place(arm.source, number, "messages"))
        if arm.live is not None:
            asked = live_tokens.load(Path(arm.live.questions))
            names = asked.ids_Q[asked.questions_N]
            letters = np.split(asked.letters_PC, asked.tokens.supervised_counts.cumsum()[:-1])
            for name, ids, found in zip(names, asked.tokens.examples(), letters, strict=True):
                surplus.refuse([*ids.tolist(), *found.ravel().tolist()], Place(f"question {name}"))


def _launch(
    config: Config, job_path: Path, events: Path, stop_file: Path, log: Path, told: "_Told"
) -> None:
    """Start the ranks and follow them to the end."""
    told.bar.note(f"starting {config.train.num_ranks} ranks")
    group = launcher.Group(config.train, job_path, events, log)
    halted: dict[str, object] | None = None
    try:
        for event in launcher.follow(group, events):
            told.show(event)
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


class _Told:
    """What the ranks tell, shown to a person; `seconds` from the launch to the first step by part."""

    def __init__(self, bar: Bar, seconds: dict[str, float]):
        self.bar, self.seconds = bar, seconds
        self._launched = time.monotonic()

    def show(self, event: dict[str, Any]) -> None:
        if event["event"] == "joined":
            since = time.monotonic() - self._launched
            self.seconds |= {
                "launch_and_imports": since,
                "imports": event["imports"],
                "join": event["join"],
            }
        elif event["event"] == "step":
            self.seconds.setdefault("to_first_log", time.monotonic() - self._launched)
        _show(event, self.bar)


def _show(event: dict[str, object], bar: Bar) -> None:
    match event["event"]:
        case "joined":
            bar.note(f"{event['world_size']} ranks joined")
        case "arm":
            bar.note(str(event["name"]))
            bar.current, bar.aside = str(event["name"]), ""
        case "step":
            bar.note(progress_line(bar.current, event) + bar.aside)
        case "note":
            say(f"train: {event['message']}")
        case "live":
            bar.aside = f", HOMO {event['accuracy']:.1%} KL {event['divergence']:.2f}"
            bar.note(
                f"{bar.current} step {event['step']}/{event['of']}{bar.aside}{', stopped early' if event['over'] else ''}"
            )
        case "done":
            bar.advance()
