"""Schedules measurements of an arm and detects when it has stopped improving. Pure functions.

A measurement costs a forward pass over its prompts or examples. An arm costs a forward and a
backward pass over its examples, three times the FLOPs of a forward pass (Kaplan et al. 2020,
arXiv 2001.08361, section 2.1). Both are estimated by `packing.cost`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BUDGET = 0.02
"""Largest share of an arm's FLOPs that `auto` uses. The documentation promises 3% of its time."""
MIN_MEASUREMENTS = 3
"""Before the first step, near the middle and after the last step."""
MIN_QUESTIONS = 50
"""Smallest subset of a larger pool: the 95% interval of an accuracy is then +-14 points."""


@dataclass(frozen=True)
class Schedule:
    """Measure the first `num_questions` before the first step, every `every` steps, and at the end.

    `share`: cost of the measurements as a share of the arm's own FLOPs.
    """

    every: int
    num_questions: int
    share: float


def num_measurements(every: int, num_steps: int) -> int:
    return 1 + math.ceil(num_steps / every)


def due(step: int, every: int, num_steps: int) -> bool:
    """True if a measurement is due after `step` steps (0: before the first). `every` 0: never."""
    return every > 0 and (step % every == 0 or step == num_steps)


def share_of(every: int, cost: float, arm_cost: float, num_steps: int) -> float:
    """Returns the cost of all measurements as a share of the arm's own FLOPs.

    `cost`: forward cost of one measurement. `arm_cost`: of the examples of all steps.
    """
    return num_measurements(every, num_steps) * cost / (3 * arm_cost)


def num_affordable(cost: float, arm_cost: float) -> int:
    """Returns the number of measurements within BUDGET; costs as in `share_of`."""
    return int(BUDGET * 3 * arm_cost / cost)


def interval(num: int, num_steps: int) -> int:
    """Returns the shortest interval with at most `num` (2 or more) measurements."""
    return math.ceil(num_steps / (num - 1))


def at_least_each_epoch(cost: float, arm_cost: float, num_steps: int, epoch_steps: int) -> int:
    """Returns the shortest interval within BUDGET, or an epoch if that is shorter.

    Costs as in `share_of`; `epoch_steps`: steps of an epoch.
    """
    num = num_affordable(cost, arm_cost)
    return min(epoch_steps, interval(num, num_steps)) if num > 1 else epoch_steps


def fixed(every: int, costs_Q: np.ndarray, arm_cost: float, num_steps: int) -> Schedule:
    """Returns a schedule of all questions at a fixed interval, whatever it costs."""
    share = share_of(every, float(costs_Q.sum()), arm_cost, num_steps)
    return Schedule(every, len(costs_Q), share)


def automatic(costs_Q: np.ndarray, arm_cost: float, num_steps: int) -> Schedule | None:
    """Returns the schedule with the shortest interval within BUDGET, or None.

    If BUDGET does not allow MIN_MEASUREMENTS of all questions, the number of questions is reduced,
    in tens, to at least MIN_QUESTIONS. `costs_Q`: forward cost of each question's prompts, in the
    order in which questions are taken. `arm_cost`: forward cost of the examples of all steps.
    """
    required = min(MIN_MEASUREMENTS, 1 + num_steps)
    affordable = num_affordable(float(costs_Q.sum()), arm_cost)
    if affordable >= required:
        return fixed(interval(affordable, num_steps), costs_Q, arm_cost, num_steps)
    # In tens, so that arms of one domain, whose costs differ slightly, get the same questions.
    budget = BUDGET * 3 * arm_cost
    limit = np.searchsorted(costs_Q.cumsum(), budget / required, side="right")
    num_questions = int(limit) // 10 * 10
    if num_questions < min(MIN_QUESTIONS, len(costs_Q)):
        return None
    return fixed(interval(required, num_steps), costs_Q[:num_questions], arm_cost, num_steps)


def since_best(values: Sequence[float], rises: bool, least_improvement: float) -> int:
    """Returns the number of measurements since the last improvement.

    An improvement exceeds the best value before it by more than `least_improvement`; a non-finite
    value is none. `rises`: higher values are better.
    """
    best, best_at = -math.inf, 0
    for number, value in enumerate(values):
        signed = value if rises else -value
        if signed > best + least_improvement:
            best, best_at = signed, number
    return len(values) - 1 - best_at
