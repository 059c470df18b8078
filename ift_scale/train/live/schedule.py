"""Schedules live measurements and detects when an arm has stopped improving. Pure functions.

A measurement costs a forward pass over the questions' prompts. An arm costs a forward and a
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


def fixed(every: int, costs_Q: np.ndarray, arm_cost: float, num_steps: int) -> Schedule:
    """Returns a schedule of all questions at a fixed interval, whatever it costs."""
    share = num_measurements(every, num_steps) * costs_Q.sum() / (3 * arm_cost)
    return Schedule(every, len(costs_Q), float(share))


def automatic(costs_Q: np.ndarray, arm_cost: float, num_steps: int) -> Schedule | None:
    """Returns the schedule with the shortest interval within BUDGET, or None.

    If BUDGET does not allow MIN_MEASUREMENTS of all questions, the number of questions is reduced,
    in tens, to at least MIN_QUESTIONS. `costs_Q`: forward cost of each question's prompts, in the
    order in which questions are taken. `arm_cost`: forward cost of the examples of all steps.
    """
    budget = BUDGET * 3 * arm_cost
    required = min(MIN_MEASUREMENTS, 1 + num_steps)
    affordable = int(budget / costs_Q.sum())
    if affordable >= required:
        return fixed(math.ceil(num_steps / (affordable - 1)), costs_Q, arm_cost, num_steps)
    # In tens, so that arms of one domain, whose costs differ slightly, get the same questions.
    limit = np.searchsorted(costs_Q.cumsum(), budget / required, side="right")
    num_questions = int(limit) // 10 * 10
    if num_questions < min(MIN_QUESTIONS, len(costs_Q)):
        return None
    every = math.ceil(num_steps / (required - 1))
    return fixed(every, costs_Q[:num_questions], arm_cost, num_steps)


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
