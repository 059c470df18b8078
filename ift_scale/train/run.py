"""The train stage: tokenise the arms that are missing, start one warm group of ranks, follow it to the end."""

import time
from collections.abc import Sequence
from pathlib import Path

from ift_scale import artifacts
from ift_scale.config import Config
from ift_scale.errors import EnvironmentProblem, Stopped
from ift_scale.inference.chat import ChatTemplate
from ift_scale.inference.model_folder import hidden_size, model_config
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.progress import Bar, say
from ift_scale.records import Arm
from ift_scale.train import data, job, launch, live_questions, saved, stop, trackers
from ift_scale.train.shape import require_proven
from ift_scale.train.watch import progress_line

VERSION = 1
STAGE = "train"
TOKENS = ".tokens"


def tokenized(set_path: Path, cache: Path, tokenizer: PromptTokenizer, config: Config) -> Path:
    """The set's token file, made where the same set, tokenizer, template and lengths have none yet."""
    template = ChatTemplate(tokenizer.tokenizer, config.evaluate.template).source
    settings = [VERSION, template, config.train.max_length, config.train.too_long, config.train.supervise]
    path = cache / f"{artifacts.digest_of([artifacts.file_digest(set_path), data.tokenizer_digest(tokenizer), settings])[:16]}.npz"
    if not path.is_file():
        data.save(data.tokenize(set_path, tokenizer, config.evaluate.template, config.train), path)
    data.check_enough(data.load(path), set_path, config.train)
    return path


def share_tokens(folder: Path, others: Sequence[Path]) -> None:
    """Have the token files of other train folders here too: their names are digests of all that made them."""
    for path in sorted(path for other in others for path in (other / TOKENS).glob("*.npz")):
        if not (folder / TOKENS / path.name).exists():
            artifacts.link_or_copy(path, folder / TOKENS / path.name)


def run(
    config: Config,
    folder: Path,
    model_path: Path,
    pending: list[tuple[Arm, Path, str, dict[str, str]]],
    logs: Path,
    bar: Bar,
    live: live_questions.Source | None = None,
) -> dict[str, float]:
    """Train the pending arms (arm, set file, key, inputs) into FOLDER/ARM; returns seconds to the first step by part.

    `live`: what live knowledge is asked from; there is none without it.
    """
    started = time.monotonic()
    require_proven(model_config(model_path), model_path / "config.json")
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
    for arm in arms:
        saved.latest(arm)  # one of another model or set is told before the ranks are started
    if live is not None and config.train.live.every != 0:
        asked = live_questions.jobs(live, arms, config, tokenizer, folder / TOKENS, hidden_size(model_path))
        arms = [arm.model_copy(update={"live": asked.get(arm.arm.name)}) for arm in arms]
    work = job.Job(
        model_path=str(model_path),
        hidden_size=hidden_size(model_path),
        template=config.evaluate.template,
        logs=str(logs),
        train=config.train,
        stop_file=str((folder / ".stop").resolve()),
        arms=arms,
    )
    job_path, stop_file, events = folder / ".job.json", folder / ".stop", logs / "train-events.jsonl"
    job.write(work, job_path)
    for old in (stop_file, events):
        old.unlink(missing_ok=True)
    seconds = {"tokenise": time.monotonic() - started}
    launched = time.monotonic()
    bar.note(f"starting {config.train.num_ranks} ranks")
    group = launch.Group(config.train, job_path, events, logs / "train.log")
    halted: dict[str, object] | None = None
    try:
        for event in launch.follow(group, events):
            _show(event, bar)
            if event["event"] == "joined":
                seconds |= {"launch_and_imports": time.monotonic() - launched, "imports": event["imports"], "join": event["join"]}
            elif event["event"] == "step" and "to_first_log" not in seconds:
                seconds["to_first_log"] = time.monotonic() - launched
            elif event["event"] == "stopped":
                halted = event
    except (Stopped, KeyboardInterrupt):
        say("train: the ranks save after the step they are in (a second signal ends them at once)")
        raise stop.stop(group, stop_file, events) from None
    finally:
        group.end()
        stop_file.unlink(missing_ok=True)
        artifacts.remove_incomplete(folder)
    if halted is not None:
        raise stop.stopped(halted)
    missing = [work.arm.name for work in arms if not artifacts.is_done(Path(work.folder), work.key)]
    if missing:
        raise EnvironmentProblem(f"the ranks ended and left arms undone: {', '.join(missing)}\n{artifacts.log_tail(group.log)}")
    return seconds


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
            bar.note(f"{bar.current} step {event['step']}/{event['of']}{bar.aside}{', stopped early' if event['over'] else ''}")
        case "done":
            bar.advance()
