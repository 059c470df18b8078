"""The training loop of one arm.

The steps are planned before the loop starts: each is a fixed set of examples with a fixed
assignment to ranks and micro-batches (`data.packing`). The loop runs them one by one, and between
two steps takes the measurements, checks whether to stop, and writes checkpoints.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ift_scale.errors import EnvironmentProblem
from ift_scale.ranks import activity
from ift_scale.ranks.environment import Ranks
from ift_scale.train.data import packing
from ift_scale.train.data.collate import num_saved, shared_prefixes
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import deepspeed as engines
from ift_scale.train.engine.checkpoint import Checkpoints
from ift_scale.train.engine.checkpoint_manifest import Progress
from ift_scale.train.engine.deepspeed import StepResult, TrainEngine
from ift_scale.train.job import ArmJob, Interrupted, Job, training_examples
from ift_scale.train.kl.penalty import KLPenalty, penalty_of
from ift_scale.train.launch.control import Control
from ift_scale.train.measurement.evaluator import Measurements
from ift_scale.train.monitor.metrics import StepLog

Monitors = Callable[[TrainEngine, int], tuple[StepLog, Measurements]]
"""(engine, number of steps) -> the log of the steps and the measurements of an arm."""


@dataclass
class TrainContext:
    """State that all arms of a launch share. `weights`: the base model's, in host memory."""

    ranks: Ranks
    device: torch.device
    weights: dict[str, Tensor]
    control: Control
    base_answers: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    """The base model's live answers, where every arm starts, by (file, number of questions)."""
    base_losses: dict[str, float] = field(default_factory=dict)
    """The base model's validation losses, by the digest of the examples."""


@dataclass
class TrainingCosts:
    """The manifest's figures of one arm: seconds by phase, and counts of steps and tokens."""

    seconds: dict[str, float]
    counts: dict[str, float]


def train(
    job: Job,
    arm: ArmJob,
    tokens: TokenizedSet,
    context: TrainContext,
    monitors: Monitors,
    checkpoints: Checkpoints,
) -> tuple[TrainEngine, TrainingCosts]:
    """Train one arm, from the base model or from its newest checkpoint.

    Early stopping ends the arm; the engine then has the weights of its last step. Raises
    Interrupted, after saving, if the ranks were asked to stop, and EnvironmentProblem after more
    than `train.max_bad_steps` steps with a non-finite gradient.
    """
    started = time.monotonic()
    config = job.train
    chosen = training_examples(arm, len(tokens.lengths))
    steps, penalty, engine = _plan_and_build(job, arm, tokens, chosen, context)
    if penalty is not None:
        penalty.prepare(engine, context.control)
    restored = checkpoints.load(engine)
    built = time.monotonic()
    steplog, measurements = monitors(engine, len(steps))
    timer = StepTimer(restored.seconds, built, measurements)
    steplog.log_before(restored.step, measurements.after(restored.step))
    bad = NonFiniteSteps(arm, tokens, context, config.max_bad_steps, restored)
    first_step, num_done = 0.0, restored.step

    for number, step in enumerate(steps[restored.step :], restored.step):
        if measurements.should_stop:
            break
        # Seeded per step, so that a resumed arm draws the same random numbers.
        torch.manual_seed(step_seed(arm.arm.seed, number))
        # The first step compiles and sets up communicators, so it may take long.
        activity.within(f"step {number + 1} of arm {arm.arm.name}", slow=number == restored.step)
        steplog.start()
        rate = engines.learning_rate(config, number, len(steps))
        divergence = None if penalty is None else penalty.of(number)
        result = engines.run_step(engine, step, tokens, rate, divergence)
        # Results stay on the device here; the log reads them every `train.log_every` steps.
        steplog.add(number, step, result)
        if not result.applied:
            bad.add(number, result)
            if bad.count > config.max_bad_steps:
                steplog.close()
                raise EnvironmentProblem(bad.too_many())
        if number == restored.step:
            first_step = timer.seconds() - restored.seconds
        num_done = number + 1
        activity.begin("logging the step")
        steplog.finish(measurements.after(num_done))
        # All ranks agree, so that they save after the same step.
        activity.begin("agreeing on the next step")
        should_stop = context.control.should_stop()
        if should_stop or checkpoints.due(num_done, len(steps)):
            # The checkpoint contains the metrics so far: write them first.
            steplog.flush()
            progress = Progress(
                step=num_done,
                seconds=timer.seconds(),
                resumed=restored.resumed,
                bad_steps=bad.count,
                bad_lines=sorted(bad.lines),
            )
            checkpoints.save(engine, progress)
        if should_stop:
            steplog.close()
            raise Interrupted(num_done)
    activity.within("")
    steplog.close()
    seconds = {
        "build": built - started,
        "first_step": first_step,
        "steps": timer.seconds(),
    } | measurements.seconds
    counts = counts_of(tokens, len(chosen), steps[:num_done], job) | measurements.counts()
    counts |= {} if penalty is None else penalty.counts()
    counts |= {"bad_steps": bad.count, "resumed": restored.resumed}
    return engine, TrainingCosts(seconds, counts)


def _plan_and_build(
    job: Job, arm: ArmJob, tokens: TokenizedSet, chosen: np.ndarray, context: TrainContext
) -> tuple[list[packing.Step], KLPenalty | None, TrainEngine]:
    """Returns all steps of the arm, the divergence from the base model in them, and an engine for
    them with the base model's weights.

    `chosen`: numbers of the examples to train on.
    """
    config, ranks = job.train, context.ranks
    steps = packing.planned_steps(
        tokens.computed_lengths,
        config,
        ranks.world_size,
        job.hidden_size,
        arm.arm.seed,
        job.path.layout,
        chosen,
    )
    penalty = penalty_of(job, arm, tokens, len(steps), ranks.world_size)
    max_micro_batches = max(map(len, steps)) + (penalty.num_micro_batches if penalty else 0)
    engine = engines.build(
        Path(job.model_path),
        context.weights,
        config,
        context.device,
        ranks,
        max_micro_batches,
        job.path,
        job.trust_remote_code,
    )
    return steps, penalty, engine


@dataclass
class StepTimer:
    """Times an arm's steps, without the measurements between them.

    `restored`: seconds before an interruption. `started`: clock at the start of this run.
    """

    restored: float
    started: float
    measurements: Measurements

    def __post_init__(self) -> None:
        self._measured_before = self._measured()

    def _measured(self) -> float:
        return sum(self.measurements.seconds.values())

    def seconds(self) -> float:
        measured = self._measured() - self._measured_before
        return self.restored + time.monotonic() - self.started - measured


def step_seed(seed: int, step: int) -> int:
    """Returns the seed of a step's random numbers, such as dropout."""
    return (seed << 32) + step


def counts_of(
    tokens: TokenizedSet, num_examples: int, steps: list[packing.Step], job: Job
) -> dict[str, float]:
    """Returns the counts of the given steps for the manifest.

    `examples`: those that are trained on. `truncated` counts the set; in all others, an example
    counts once per epoch.
    """
    seen = [i for step in steps for micro in step for examples in micro for i in examples]
    imbalances = [
        packing.imbalance(step, tokens.computed_lengths, job.hidden_size) for step in steps
    ]
    saved = 0
    if job.path.shares_prefix(job.train):
        saved = sum(num_saved(shared_prefixes(step, tokens)) for step in steps)
    return {
        "steps": len(steps),
        "examples": num_examples,
        "tokens": int(tokens.lengths[seen].sum()),
        "computed_tokens": int(tokens.computed_lengths[seen].sum()) - saved,
        "supervised_tokens": int(tokens.supervised_counts[seen].sum()),
        "truncated": tokens.num_truncated,
        "mean_imbalance": sum(imbalances) / len(imbalances),
    }


class NonFiniteSteps:
    """Counts the steps that were skipped because of a non-finite gradient, with their examples.

    `limit`: `train.max_bad_steps`. `restored`: progress before an interruption.
    """

    def __init__(
        self,
        arm: ArmJob,
        tokens: TokenizedSet,
        context: TrainContext,
        limit: int,
        restored: Progress,
    ):
        self._arm, self._tokens, self._context, self._limit = arm, tokens, context, limit
        self.count = restored.bad_steps
        self.lines = set(restored.bad_lines)
        self._newest = ""

    def add(self, step: int, result: StepResult) -> None:
        """Record skipped step `step` (from 0). Every rank must call this after the same step."""
        self.count += 1
        mine = engines.non_finite_examples(result, self._tokens.supervised_counts)
        gathered = self._context.control.gather([int(example) for example in mine])
        lines = sorted(example + 1 for examples in gathered for example in examples)
        self.lines.update(lines)
        examples = (
            f"lines {', '.join(map(str, lines))}"
            if lines
            else "no single example (every loss is finite, the gradient is not)"
        )
        self._newest = (
            f"{self._arm.source}: step {step + 1} was skipped, its loss or gradient is non-finite:"
            f" {examples}"
        )
        if self._context.ranks.is_rank_zero:
            print(self._newest, flush=True)

    def too_many(self) -> str:
        """Returns the error message for more than `train.max_bad_steps` steps."""
        lines = ", ".join(map(str, sorted(self.lines)[:20]))
        check = f"check the examples in lines {lines}, " if lines else ""
        return (
            f"{self._newest}. {self.count} such steps are more than train.max_bad_steps ="
            f" {self._limit}: {check}lower train.learning_rate, or check the base model's weights"
        )
