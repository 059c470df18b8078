"""SliCK grades (Gekhman et al. 2024, arXiv 2405.05904) from a model's answers to one question.

A grade describes how reliably the model answers a question: always, sometimes, only when sampled,
or never.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ift_scale.config.engines import ReliabilityConfig
from ift_scale.scoring.blocks import Block, softmax


def grade_of(greedy_right: Any, sampled_right: Any) -> np.ndarray:
    """Returns indices into GRADES by SliCK's rule.

    Both arguments are shares of right answers, among greedy and among sampled ones.
    """
    return np.where(
        greedy_right == 1, 0, np.where(greedy_right > 0, 1, np.where(sampled_right > 0, 2, 3))
    )


def grade_beyond_chance(
    greedy_right: np.ndarray,
    sampled_right: np.ndarray,
    num_draws: np.ndarray,
    num_samples: np.ndarray,
    chance: float,
    level: float,
) -> np.ndarray:
    """As `grade_of` for questions with options, where guesses are right with probability `chance`.

    All arrays are (Q,). MaybeKnown and WeaklyKnown need more right answers than guessing gives: a
    binomial tail probability of at most `level` for `num_draws` greedy answers or for `num_samples`
    samples (`effective_samples`). HighlyKnown is SliCK's: always right.
    """
    from scipy.special import betainc

    def beyond(share_Q: np.ndarray, asked_Q: np.ndarray) -> np.ndarray:
        right_Q = share_Q * asked_Q
        # The upper tail P(X >= right) of the binomial distribution.
        tail_Q = betainc(np.maximum(right_Q, 1e-9), asked_Q - right_Q + 1, chance)
        return (right_Q > 0) & (tail_Q <= level)

    maybe_Q, weakly_Q = beyond(greedy_right, num_draws), beyond(sampled_right, num_samples)
    return np.where(greedy_right == 1, 0, np.where(maybe_Q, 1, np.where(weakly_Q, 2, 3)))


def effective_samples(right_NV: np.ndarray) -> float:
    """Returns how many independent samples N samples of each of V demonstration draws are worth.

    The result is between V and N V (Rao and Scott 1992). A guessing model prefers one letter in one
    draw and another in the next, so the samples of a draw are alike. Their number is divided by how
    much more the draws' shares vary than those of independent samples.
    """
    num_samples, num_draws = right_NV.shape
    mean = right_NV.mean()
    independent = mean * (1 - mean) / num_samples
    if num_draws == 1 or independent == 0:
        return float(right_NV.size)
    effect = right_NV.mean(0).var(ddof=1) / independent
    return float(right_NV.size / np.clip(effect, 1, num_samples))


@dataclass(frozen=True)
class GradeInputs:
    """Answers of Q questions over the demonstration draws, options in their own order; all (Q,).

    The shares of greedy and of sampled answers that are right, the number of draws, and the number
    of independent samples that the samples are worth.
    """

    greedy_right: np.ndarray
    sampled_right: np.ndarray
    num_draws: np.ndarray
    num_samples: np.ndarray


def grade_inputs(block: Block, ids: list[str], config: ReliabilityConfig) -> GradeInputs:
    """Samples answers from the letters' distribution at `grade_temperature`, without any request.

    The generator is seeded by the question's id.
    """
    plain = (block.orders == np.arange(block.orders.shape[-1])).all(-1)
    inputs = GradeInputs(*(np.zeros(len(ids)) for _ in range(4)))
    for i, id in enumerate(ids):
        logprobs_VC = block.logprobs[i, plain[i]]
        inputs.greedy_right[i] = (logprobs_VC.argmax(-1) == block.answer[i]).mean()
        right_V = softmax(logprobs_VC / config.grade_temperature)[:, block.answer[i]]
        draws = np.random.default_rng([zlib.crc32(id.encode()), config.seed]).random(
            (config.grade_samples, len(right_V))
        )
        inputs.sampled_right[i] = (draws < right_V).mean()
        inputs.num_draws[i], inputs.num_samples[i] = (
            len(right_V),
            effective_samples(draws < right_V),
        )
    return inputs
