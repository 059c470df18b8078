"""Train one arm: steps of fixed examples, no Trainer between."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ift_scale.config import TrainConfig
from ift_scale.distributed import Ranks
from ift_scale.errors import EnvironmentProblem
from ift_scale.train import engine as engines
from ift_scale.train import packing
from ift_scale.train.control import Control
from ift_scale.train.data import TokenizedSet
from ift_scale.train.engine import Engine, StepResult
from ift_scale.train.job import ArmJob, Job
from ift_scale.train.metrics import StepLog


@dataclass
class Group:
    """What all arms of a launch share: this rank, its device, the base model's weights in host memory, the way to stop."""

    ranks: Ranks
    device: torch.device
    weights: dict[str, Tensor]
    control: Control


@dataclass
class Trained:
    """What an arm cost: seconds by part, tokens, steps."""

    seconds: dict[str, float]
    counts: dict[str, float]


def train(
    job: Job, arm: ArmJob, tokens: TokenizedSet, group: Group, log: Callable[[Engine, int], StepLog]
) -> tuple[Engine, Trained]:
    """Train one arm from the base model; returns (engine, costs). `log` makes the log of the steps, given their number."""
    started = time.monotonic()
    config = job.train
    steps = packing.planned_steps(tokens.computed_lengths, config, group.ranks.world_size, job.hidden_size, arm.arm.seed)
    engine = engines.build(Path(job.model_path), group.weights, config, group.device, group.ranks, max(map(len, steps)))
    built = time.monotonic()
    steplog = log(engine, len(steps))
    bad = BadSteps(arm, tokens, config.max_bad_steps, group.control)
    first_step = 0.0
    for number, step in enumerate(steps):
        torch.manual_seed(seed_of(arm.arm.seed, number))
        steplog.start()
        result = engines.run_step(engine, step, tokens, engines.learning_rate(config, number, len(steps)))
        steplog.add(number, step, result)
        if not result.applied:
            bad.add(number, result)
        if number == 0:
            first_step = time.monotonic() - built
    steplog.close()
    seconds = {"build": built - started, "first_step": first_step, "steps": time.monotonic() - built}
    return engine, Trained(seconds, counts_of(tokens, steps, config, job.hidden_size) | {"bad_steps": bad.count})


def seed_of(seed: int, step: int) -> int:
    """Seed of a step's random numbers (dropout, where a model has it), so that a resumed arm draws the same."""
    return (seed << 32) + step


def counts_of(tokens: TokenizedSet, steps: list[packing.Step], config: TrainConfig, hidden_size: int) -> dict[str, float]:
    imbalances = [packing.imbalance(step, tokens.computed_lengths, hidden_size) for step in steps]
    return {
        "steps": len(steps),
        "examples": len(tokens.lengths),
        "tokens": int(tokens.lengths.sum()) * config.epochs,
        "computed_tokens": int(tokens.computed_lengths.sum()) * config.epochs,
        "supervised_tokens": int(tokens.supervised_counts.sum()) * config.epochs,
        "truncated": tokens.num_truncated,
        "mean_imbalance": sum(imbalances) / len(imbalances),
    }


class BadSteps:
    """Steps that were not applied since their gradient was no number: counted, their examples named, too many end the arm."""

    def __init__(self, arm: ArmJob, tokens: TokenizedSet, most: int, control: Control):
        self._arm, self._tokens, self._most, self._control = arm, tokens, most, control
        self.count = 0
        self._lines: set[int] = set()

    def add(self, step: int, result: StepResult) -> None:
        """Called by every rank after the same step. EnvironmentProblem with the examples' lines where it is one too many."""
        self.count += 1
        mine = engines.bad_examples(result, self._tokens.supervised_counts)
        found = sorted(line + 1 for lines in self._control.gather(mine) for line in lines)
        self._lines.update(found)
        told = f"lines {', '.join(map(str, found))}" if found else "no single example (each loss is a number, the gradient is not)"
        message = f"{self._arm.source}: step {step + 1} was skipped, its loss or gradient is no number: {told}"
        print(message, flush=True)
        if self.count > self._most:
            named = f"the examples are lines {', '.join(map(str, sorted(self._lines)[:20]))}; look at them, " if self._lines else ""
            raise EnvironmentProblem(
                f"{message}. {self.count} such steps are more than train.max_bad_steps = {self._most}: {named}"
                "or lower train.learning_rate, or check the base model's weights"
            )
