"""The divergence in one optimizer step: factors of the rows, and the base's distributions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from ift_scale_kernels.linear_cross_entropy.kl import TopK

from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.data.micro_batch import KLRows, on_device
from ift_scale.train.data.packing import Step


@dataclass(frozen=True)
class StoredTargets:
    """Shapes: ids and logprobs (rows, K), int32 and float32; rest (rows,), float32. Nats."""

    ids: np.ndarray
    logprobs: np.ndarray
    rest: np.ndarray
    tokens: TokenizedSet

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.tokens.supervised_counts)

    def rows_of(self, examples: Sequence[int]) -> np.ndarray:
        """Returns the numbers of the examples' rows, in the order in which `collate` puts them."""
        counts = self.tokens.supervised_counts
        return np.concatenate(
            [np.arange(self._ends[i] - counts[i], self._ends[i]) for i in examples]
        )


@dataclass(frozen=True)
class TextStep:
    """Examples of general text in a step, whose rows have no cross-entropy.

    `weight`: of their mean divergence in the loss.
    """

    step: Step
    tokens: TokenizedSet
    weight: float
    targets: StoredTargets | None


@dataclass(frozen=True)
class StepPenalty:
    """The divergence in a step. `weight`: of the mean over the set's rows in the loss. `targets`:
    the base's distributions at the set's rows; None if a frozen copy computes them."""

    weight: float
    targets: StoredTargets | None
    text: TextStep | None


@dataclass(frozen=True)
class Divergence:
    """Factors of each example's summed divergence in the step's loss, shape (all examples,)."""

    scales: np.ndarray
    targets: StoredTargets | None

    def rows(self, examples: Sequence[int], tokens: TokenizedSet, device: torch.device) -> KLRows:
        """Returns the rows of a micro-batch; without examples, of the stand-in."""
        chosen = list(examples) or [tokens.stand_in]
        counts = tokens.supervised_counts[chosen]
        factors = self.scales[chosen] if examples else np.zeros(1)
        weights_R = on_device(np.repeat(factors, counts), np.float32, device=device)
        if self.targets is None:
            return KLRows(weights_R, None)
        rows = self.targets.rows_of(chosen)
        top = TopK(
            on_device(self.targets.ids[rows], device=device),
            on_device(self.targets.logprobs[rows], np.float32, device=device),
            on_device(self.targets.rest[rows], np.float32, device=device),
        )
        return KLRows(weights_R, top)
