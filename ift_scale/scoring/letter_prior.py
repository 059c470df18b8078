"""The prior of each option letter, and probabilities with it divided out (PriDe).

Source: Zheng et al. 2024, arXiv 2309.03882. Shapes: Q questions of one option count C.
"""

from dataclasses import dataclass, field

import numpy as np

from ift_scale.scoring.blocks import Block, softmax

# Probabilities are divided by the prior, so a letter with probability 0 must not make it 0.
_LEAST_PROBABILITY = 1e-12


@dataclass
class LetterPrior:
    """PriDe's prior of each letter, per option count.

    The mean over the sampled questions of the softmax of the letter's mean log-probability over all
    rotations.
    """

    sums: dict[int, np.ndarray] = field(default_factory=dict)
    questions: dict[int, int] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        num_choices = block.logprobs.shape[-1]
        chosen = block.rotations.sum(1) == num_choices
        if chosen.any():
            observed = np.log(np.maximum(softmax(block.logprobs[chosen]), _LEAST_PROBABILITY))
            kept = block.rotations[chosen][..., None]
            prior_QC = softmax((observed * kept).sum(1) / num_choices)
            self.sums[num_choices] = self.sums.get(num_choices, 0.0) + prior_QC.sum(0)
            self.questions[num_choices] = self.questions.get(num_choices, 0) + len(prior_QC)

    def of(self, num_choices: int) -> np.ndarray | None:
        """Returns the prior (C,), or None if no question with this many options was sampled."""
        count = self.questions.get(num_choices, 0)
        return self.sums[num_choices] / count if count else None


def debiased(block: Block, prior_C: np.ndarray) -> np.ndarray:
    """Divides the letters' prior out of the plain view's probabilities; by content, (Q, C)."""
    shown = softmax(block.logprobs[:, 0]) / prior_C
    by_content = np.empty_like(shown)
    np.put_along_axis(by_content, block.orders[:, 0], shown / shown.sum(-1, keepdims=True), -1)
    return by_content
