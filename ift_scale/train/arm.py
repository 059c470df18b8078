"""One arm on all ranks: train it, export it, and publish its folder with a manifest."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from ift_scale.errors import EnvironmentProblem
from ift_scale.io.files import atomic_folder
from ift_scale.io.manifests import write_manifest
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks import activity
from ift_scale.train import job, loop
from ift_scale.train.data import dataset, packing
from ift_scale.train.engine import export_tokenizer, zero_config
from ift_scale.train.engine.best import BestWeights
from ift_scale.train.engine.checkpoint import Checkpoints
from ift_scale.train.engine.deepspeed import TrainEngine
from ift_scale.train.engine.export import export
from ift_scale.train.epochs import EpochExports
from ift_scale.train.live.evaluator import LiveEvaluator
from ift_scale.train.measurement.evaluator import Measurements, PeriodicEvaluator
from ift_scale.train.model.packed import PackedCausalLM
from ift_scale.train.monitor import throughput
from ift_scale.train.monitor.metrics import StepLog
from ift_scale.train.monitor.trackers import Trackers
from ift_scale.train.validation.evaluator import ValidationEvaluator


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
    folders = f"the file systems of {work.model_path} and {arm.tokens}"
    activity.begin(f"preparing arm {arm.arm.name}", folders, slow=True)
    is_rank_zero = context.ranks.is_rank_zero
    with atomic_folder(Path(arm.folder)) if is_rank_zero else nullcontext() as folder:
        tokens = dataset.load(Path(arm.tokens))
        metrics = folder / "metrics.jsonl" if folder else None
        checkpoints = Checkpoints(arm, work.train, context.control, metrics)

        best: BestWeights | None = None
        epochs: EpochExports | None = None

        def monitors(engine: TrainEngine, num_steps: int) -> tuple[StepLog, Measurements]:
            nonlocal best, epochs
            write = partial(_write_model, work, context, tokenizer, engine)
            epochs = EpochExports(arm, engine, context.control, num_steps, write)
            steplog = _step_log(work, arm, tokens, context, engine, num_steps, metrics, events)
            if arm.validation is not None and work.train.validation.keep_best:
                best = BestWeights(arm, context.control, is_rank_zero, write)
            measurements = _measurements(
                work, arm, tokens, context, engine, num_steps, folder, events, best
            )
            return steplog, Measurements([*measurements, epochs])

        with _keep_on_failure(metrics, Path(work.logs) / f"{arm.arm.name}-metrics.jsonl"):
            engine, costs = loop.train(work, arm, tokens, context, monitors, checkpoints)
        if folder is not None and epochs is not None:
            epochs.publish(folder)
        _export(work, arm, context, tokenizer, engine, folder, costs, best)
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
    best: BestWeights | None,
) -> None:
    """Write the model and the manifest to `folder` on rank 0; frees the engine on every rank.

    `best`: the weights to publish instead of the engine's, if the best ones are kept.
    """
    started = time.monotonic()
    disk = f"the disk of {Path(arm.folder).parent}"
    activity.begin(f"exporting arm {arm.arm.name}", disk, slow=True)
    target = folder / "model" if folder else None
    if best is None:
        costs.counts["export_peak_bytes"] = _write_model(work, context, tokenizer, engine, target)
    elif best.kept is None:
        raise EnvironmentProblem(
            f"{arm.source}: no validation loss is finite, so there are no best weights; lower"
            " train.learning_rate, or set train.validation.keep_best to false"
        )
    else:
        costs.counts["export_peak_bytes"] = best.kept.peak_bytes
        if target is not None:
            best.publish(target)
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


def _write_model(
    work: job.Job,
    context: loop.TrainContext,
    tokenizer: PromptTokenizer,
    engine: TrainEngine,
    target: Path | None,
) -> int:
    """Exports the engine's model to `target` on rank 0 and returns the memory used, in bytes.

    Every rank must call this; `target` is None on the others.
    """
    model = engine.packed.model
    exported = export_tokenizer.exported_tokenizer(tokenizer, work.template, model.config)
    dtype = zero_config.precision_of(work.train, context.device)
    gather = work.train.zero_stage == 3
    return export(model, gather, target, Path(work.model_path), exported, dtype)


def _measurements(
    work: job.Job,
    arm: job.ArmJob,
    tokens: dataset.TokenizedSet,
    context: loop.TrainContext,
    engine: TrainEngine,
    num_steps: int,
    folder: Path | None,
    events: job.Events,
    best: BestWeights | None,
) -> list[PeriodicEvaluator]:
    """Returns the arm's evaluators, which continue from the files in `folder` on rank 0."""
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
    trained = job.training_examples(arm, len(tokens.lengths))
    cap = packing.max_micro_batch_tokens(
        tokens.computed_lengths[trained],
        work.train,
        context.ranks.world_size,
        work.path.layout,
    )
    validation = ValidationEvaluator(
        arm.validation,
        work.train.validation,
        engine,
        context.control,
        num_steps,
        work.hidden_size,
        cap,
        folder,
        events,
        context.base_losses,
        best,
    )
    return [live, validation]


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
