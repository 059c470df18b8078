"""How often live knowledge is measured, of how many questions, and when an arm's knowledge has stopped improving. Pure functions.

A measurement is a forward pass over the questions' prompts; an arm is a forward and a backward pass over its examples, which takes
three times a forward pass' FLOPs (Kaplan et al. 2020, 2001.08361, section 2.1). Both are counted by `packing.cost`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BUDGET = 0.02
"""Share of an arm's FLOPs that `auto` spends at most: what is promised is 3% of its time."""
FEWEST_MEASUREMENTS = 3
"""Before the first step, about the middle, after the last: with fewer there is no curve."""
FEWEST_QUESTIONS = 50
"""Of a pool that has more: an accuracy over 50 questions is known to 14 points (95%), over fewer it says too little."""


@dataclass(frozen=True)
class Schedule:
    """Ask the first `num_questions` before the first step, after each `every` steps and after the last.

    `share`: what that costs, as a share of the arm's own FLOPs.
    """

    every: int
    num_questions: int
    share: float


def num_measurements(every: int, num_steps: int) -> int:
    return 1 + math.ceil(num_steps / every)


def due(step: int, every: int, num_steps: int) -> bool:
    """Whether to measure after `step` steps; 0 is before the first. `every` 0: never."""
    return every > 0 and (step % every == 0 or step == num_steps)


def fixed(every: int, costs_Q: np.ndarray, arm_cost: float, num_steps: int) -> Schedule:
    """All questions at the interval that the settings name, whatever that costs."""
    share = num_measurements(every, num_steps) * costs_Q.sum() / (3 * arm_cost)
    return Schedule(every, len(costs_Q), float(share))


def automatic(costs_Q: np.ndarray, arm_cost: float, num_steps: int) -> Schedule | None:
    """The shortest interval that stays within BUDGET.

    `costs_Q`: each prompt's forward cost, in the order in which questions are taken; `arm_cost`: forward cost of the examples of
    all steps. Where not even FEWEST_MEASUREMENTS of all questions are within it, so many of as many tens of questions as are; None
    where that is less than FEWEST_QUESTIONS (or than all of a smaller pool).
    """
    budget = BUDGET * 3 * arm_cost
    fewest = min(FEWEST_MEASUREMENTS, 1 + num_steps)
    affordable = int(budget / costs_Q.sum())
    if affordable >= fewest:
        return fixed(math.ceil(num_steps / (affordable - 1)), costs_Q, arm_cost, num_steps)
    # Tens, so that the arms of a domain, whose costs differ by a little, are asked the same ones.
    num_questions = int(np.searchsorted(costs_Q.cumsum(), budget / fewest, side="right")) // 10 * 10
    if num_questions < min(FEWEST_QUESTIONS, len(costs_Q)):
        return None
    return fixed(math.ceil(num_steps / (fewest - 1)), costs_Q[:num_questions], arm_cost, num_steps)


def since_best(values: Sequence[float], rises: bool, least_improvement: float) -> int:
    """Measurements since the last one that was better than the best before it by more than `least_improvement`.

    A value that is no number is no improvement.
    """
    best, best_at = -math.inf, 0
    for place, value in enumerate(values):
        signed = value if rises else -value
        if signed > best + least_improvement:
            best, best_at = signed, place
    return len(values) - 1 - best_at
