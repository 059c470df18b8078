"""Train one arm: steps of fixed examples, no Trainer between."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ift_scale.errors import EnvironmentProblem
from ift_scale.ranks.environment import Ranks
from ift_scale.train.data import packing
from ift_scale.train.data.collate import num_saved, shared_prefixes
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import deepspeed as engines
from ift_scale.train.engine.checkpoint import Checkpoints
from ift_scale.train.engine.deepspeed import Engine, StepResult
from ift_scale.train.job import ArmJob, Job
from ift_scale.train.launch.control import Control, Interrupted
from ift_scale.train.live.evaluator import Live
from ift_scale.train.monitor.metrics import StepLog


@dataclass
class Group:
    """What all arms of a launch share: this rank, its device, the base model's weights in host memory, the way to stop."""

    ranks: Ranks
    device: torch.device
    weights: dict[str, Tensor]
    control: Control
    base_answers: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    """What the base model answers live, which every arm begins with, by questions."""


@dataclass
class Trained:
    """What an arm cost: seconds by part, tokens, steps."""

    seconds: dict[str, float]
    counts: dict[str, float]


def train(
    job: Job,
    arm: ArmJob,
    tokens: TokenizedSet,
    group: Group,
    log: Callable[[Engine, int], tuple[StepLog, Live]],
    checkpoints: Checkpoints,
) -> tuple[Engine, Trained]:
    """Train one arm from the base model, or on from its newest checkpoint; returns (engine, costs).

    `log` makes what tells of the steps, given their number. Where live knowledge has stopped improving and the settings want it,
    the arm ends early, with the weights of its last step. Interrupted, after saving, where the ranks shall stop.
    """
    started = time.monotonic()
    config = job.train
    steps = packing.planned_steps(
        tokens.computed_lengths, config, group.ranks.world_size, job.hidden_size, arm.arm.seed
    )
    engine = engines.build(
        Path(job.model_path), group.weights, config, group.device, group.ranks, max(map(len, steps))
    )
    begun = checkpoints.load(engine)
    built = time.monotonic()
    steplog, live = log(engine, len(steps))
    asked_before = live.seconds
    live.after(begun.step)
    bad = BadSteps(arm, tokens, group, config.max_bad_steps, begun.bad_lines, begun.bad_steps)
    first_step, made = 0.0, begun.step

    def spent() -> float:
        return begun.seconds + time.monotonic() - built - (live.seconds - asked_before)

    for number, step in enumerate(steps[begun.step :], begun.step):
        if live.over:
            break
        torch.manual_seed(seed_of(arm.arm.seed, number))
        steplog.start()
        result = engines.run_step(
            engine, step, tokens, engines.learning_rate(config, number, len(steps))
        )
        steplog.add(number, step, result)
        if not result.applied:
            bad.add(number, result)
            if bad.count > config.max_bad_steps:
                steplog.close()
                raise EnvironmentProblem(bad.too_many())
        if number == begun.step:
            first_step = spent() - begun.seconds
        made = number + 1
        live.after(made)
        stops = group.control.stops()
        if stops or checkpoints.due(made, len(steps)):
            steplog.flush()
            so_far = {
                "step": made,
                "seconds": spent(),
                "bad_steps": bad.count,
                "bad_lines": sorted(bad.lines),
            }
            checkpoints.save(engine, begun.model_copy(update=so_far))
        if stops:
            steplog.close()
            raise Interrupted(made)
    steplog.close()
    seconds = {
        "build": built - started,
        "first_step": first_step,
        "steps": spent(),
        "live": live.seconds,
    }
    more = {"bad_steps": bad.count, "resumed": begun.resumed}
    return engine, Trained(seconds, counts_of(tokens, steps[:made], job) | more | live.counts())


def seed_of(seed: int, step: int) -> int:
    """Seed of a step's random numbers (dropout, where a model has it), so that a resumed arm draws the same."""
    return (seed << 32) + step


def counts_of(tokens: TokenizedSet, steps: list[packing.Step], job: Job) -> dict[str, float]:
    """Of the steps that were made; an example counts as often as it was seen, but for `examples` and `truncated`."""
    seen = [i for step in steps for micro in step for place in micro for i in place]
    imbalances = [
        packing.imbalance(step, tokens.computed_lengths, job.hidden_size) for step in steps
    ]
    saved = (
        sum(num_saved(shared_prefixes(step, tokens)) for step in steps)
        if job.train.share_prefix
        else 0
    )
    return {
        "steps": len(steps),
        "examples": len(tokens.lengths),
        "tokens": int(tokens.lengths[seen].sum()),
        "computed_tokens": int(tokens.computed_lengths[seen].sum()) - saved,
        "supervised_tokens": int(tokens.supervised_counts[seen].sum()),
        "truncated": tokens.num_truncated,
        "mean_imbalance": sum(imbalances) / len(imbalances),
    }


class BadSteps:
    """Steps that were not applied since their gradient was no number: counted, their examples named, too many end the arm."""

    def __init__(
        self,
        arm: ArmJob,
        tokens: TokenizedSet,
        group: Group,
        most: int,
        lines: list[int],
        count: int,
    ):
        self._arm, self._tokens, self._group, self._most = arm, tokens, group, most
        self.count = count
        self.lines = set(lines)
        self._newest = ""

    def add(self, step: int, result: StepResult) -> None:
        """Called by every rank after the same step."""
        self.count += 1
        mine = engines.bad_examples(result, self._tokens.supervised_counts)
        found = sorted(line + 1 for lines in self._group.control.gather(mine) for line in lines)
        self.lines.update(found)
        told = (
            f"lines {', '.join(map(str, found))}"
            if found
            else "no single example (each loss is a number, the gradient is not)"
        )
        self._newest = f"{self._arm.source}: step {step + 1} was skipped, its loss or gradient is no number: {told}"
        if self._group.ranks.rank == 0:
            print(self._newest, flush=True)

    def too_many(self) -> str:
        """What to say when there were more than `train.max_bad_steps`."""
        named = (
            f"the examples are lines {', '.join(map(str, sorted(self.lines)[:20]))}; look at them, "
            if self.lines
            else ""
        )
        return (
            f"{self._newest}. {self.count} such steps are more than train.max_bad_steps = {self._most}: {named}"
            "or lower train.learning_rate, or check the base model's weights"
        )
