"""One arm on all ranks: train it, export it, and publish its folder with a manifest."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ift_scale.io.files import atomic_folder
from ift_scale.io.manifests import write_manifest
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train import job, loop
from ift_scale.train.data import dataset
from ift_scale.train.engine import export_tokenizer, zero_config
from ift_scale.train.engine.checkpoint import Checkpoints
from ift_scale.train.engine.deepspeed import TrainEngine
from ift_scale.train.engine.export import export
from ift_scale.train.live.evaluator import LiveEvaluator
from ift_scale.train.model.packed import PackedCausalLM
from ift_scale.train.monitor import throughput
from ift_scale.train.monitor.metrics import StepLog
from ift_scale.train.monitor.trackers import Trackers


def train_arms(
    work: job.Job, context: loop.TrainContext, tokenizer: PromptTokenizer, events: job.Events
) -> None:
    """Train the arms one after another. Raises Interrupted, after saving, if asked to stop."""
    for arm in work.arms:
        try:
            if context.control.should_stop():
                raise job.Interrupted(0)
            train_arm(work, arm, context, tokenizer, events)
        except job.Interrupted as stopped:
            events.emit("stopped", name=arm.arm.name, step=stopped.step)
            raise job.Interrupted(stopped.step, arm.arm.name) from None


def train_arm(
    work: job.Job,
    arm: job.ArmJob,
    context: loop.TrainContext,
    tokenizer: PromptTokenizer,
    events: job.Events,
) -> None:
    """Train and export one arm. Rank 0 publishes its folder as a whole, or not at all."""
    events.emit("arm", name=arm.arm.name)
    is_rank_zero = context.ranks.is_rank_zero
    with atomic_folder(Path(arm.folder)) if is_rank_zero else nullcontext() as folder:
        tokens = dataset.load(Path(arm.tokens))
        metrics = folder / "metrics.jsonl" if folder else None
        checkpoints = Checkpoints(arm, work.train, context.control, metrics)

        def monitors(engine: TrainEngine, num_steps: int) -> tuple[StepLog, LiveEvaluator]:
            steplog = _step_log(work, arm, tokens, context, engine, num_steps, metrics, events)
            live = LiveEvaluator(
                arm.live,
                work.train.live,
                engine,
                context.control,
                num_steps,
                work.hidden_size,
                folder,
                events,
                context.base_answers,
            )
            return steplog, live

        with _keep_on_failure(metrics, Path(work.logs) / f"{arm.arm.name}-metrics.jsonl"):
            engine, costs = loop.train(work, arm, tokens, context, monitors, checkpoints)
        _export(work, arm, context, tokenizer, engine, folder, costs)
    # Only after the folder exists: a crash before this line resumes from a checkpoint.
    checkpoints.remove()
    context.control.barrier()
    events.emit("done", name=arm.arm.name, seconds=costs.seconds)


def _export(
    work: job.Job,
    arm: job.ArmJob,
    context: loop.TrainContext,
    tokenizer: PromptTokenizer,
    engine: TrainEngine,
    folder: Path | None,
    costs: loop.TrainingCosts,
) -> None:
    """Write the model and the manifest to `folder` on rank 0; frees the engine on every rank."""
    started = time.monotonic()
    model = engine.packed.model
    target = folder / "model" if folder else None
    exported = export_tokenizer.exported_tokenizer(tokenizer, work.template, model.config)
    dtype = zero_config.precision_of(work.train, context.device)
    gather = work.train.zero_stage == 3
    peak = export(model, gather, target, Path(work.model_path), exported, dtype)
    costs.counts["export_peak_bytes"] = peak
    del model  # the last reference but the engine's own
    engine.release()
    if folder is None or target is None:
        return
    export_tokenizer.check(target, tokenizer, work.template, [Path(arm.source)])
    costs.seconds["export"] = time.monotonic() - started
    config = {
        "train": work.train.model_dump(),
        "template": work.template,
        "arm": arm.arm.model_dump(),
    }
    write_manifest(folder, "train", arm.key, config, arm.inputs, costs.counts, costs.seconds)


def _step_log(
    work: job.Job,
    arm: job.ArmJob,
    tokens: dataset.TokenizedSet,
    context: loop.TrainContext,
    engine: TrainEngine,
    num_steps: int,
    metrics: Path | None,
    events: job.Events,
) -> StepLog:
    """Returns the log of the arm's steps, with the trackers started on rank 0."""
    meter = build_meter(work, tokens, context, engine.packed, events)
    names = work.train.trackers if context.ranks.is_rank_zero else []
    trackers = Trackers(names, Path(work.logs), events.note)
    settings = {
        "model": work.model_path,
        "template": work.template,
        "train": work.train.model_dump(),
    }
    trackers.start(arm.arm.name, settings)
    every = work.train.log_every
    return StepLog(metrics, events, num_steps, meter, trackers, every, context.device)


def build_meter(
    work: job.Job,
    tokens: dataset.TokenizedSet,
    context: loop.TrainContext,
    packed: PackedCausalLM,
    events: job.Events,
) -> throughput.Meter:
    """Returns the meter of an arm's steps. Notes the reason if MFU cannot be computed."""
    dtype = zero_config.precision_of(work.train, context.device)
    peak, no_peak = throughput.peak_flops(work.train, context.device, dtype)
    if no_peak:
        events.note(no_peak)
    return throughput.Meter(
        tokens,
        work.hidden_size,
        context.ranks.world_size,
        work.shape,
        packed.pruned,
        packed.shares_prefix,
        peak,
    )


@contextmanager
def _keep_on_failure(metrics: Path | None, copy: Path) -> Iterator[None]:
    """Copies the metrics of a failed arm to the logs, because its incomplete folder is removed."""
    try:
        yield
    except Exception:
        if metrics is not None and metrics.is_file():
            shutil.copyfile(metrics, copy)
        raise
