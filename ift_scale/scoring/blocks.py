"""Blocks: rows of a shard with equal shapes as arrays, and the letters' prior estimated on them.

Shapes: Q questions of one option count C, V views of each. The prior is PriDe's (Zheng et al. 2024,
arXiv 2309.03882).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

# Probabilities are divided by the prior, so a letter with probability 0 must not make it 0.
_LEAST_PROBABILITY = 1e-12


def softmax(logprobs: np.ndarray) -> np.ndarray:
    """Returns the probabilities over the last axis."""
    weights = np.exp(logprobs - logprobs.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Block:
    """Rows of a shard with equal shapes.

    `rows` (Q,), `logprobs` (Q, V, C) in the order shown, `orders` (Q, V, C), `draws` (Q, V),
    `answer` (Q,).
    """

    rows: np.ndarray
    logprobs: np.ndarray
    orders: np.ndarray
    draws: np.ndarray
    answer: np.ndarray

    @property
    def probs(self) -> np.ndarray:
        """Probabilities by content, (Q, V, C): each letter's moved to the option it stood for."""
        by_content = np.empty_like(self.logprobs)
        np.put_along_axis(by_content, self.orders, softmax(self.logprobs), -1)
        return by_content

    @property
    def rotations(self) -> np.ndarray:
        """True for views that are rotations with the first demonstrations, (Q, V)."""
        turned = (self.orders[..., :1] + np.arange(self.orders.shape[-1])) % self.orders.shape[-1]
        return (self.draws == 0) & (turned == self.orders).all(-1)


def blocks(table: pa.Table) -> Iterator[Block]:
    """Splits the table's rows by their numbers of views and options."""
    lists = {name: table[name].combine_chunks() for name in ("draws", "orders", "logprobs")}
    views, shown = (np.asarray(lists[name].value_lengths()) for name in ("draws", "logprobs"))
    flat = {name: np.asarray(column.flatten()) for name, column in lists.items()}
    starts = {name: np.asarray(column.offsets)[:-1] for name, column in lists.items()}
    starts = {name: begin - begin[0] if len(begin) else begin for name, begin in starts.items()}
    answer = np.asarray(table["answer"])
    for num_views, num_shown in sorted({*zip(views.tolist(), shown.tolist(), strict=True)}):
        rows = np.flatnonzero((views == num_views) & (shown == num_shown))
        at = {name: begin[rows][:, None] for name, begin in starts.items()}
        shape = (len(rows), num_views, num_shown // num_views)
        yield Block(
            rows,
            flat["logprobs"][at["logprobs"] + np.arange(num_shown)].reshape(shape),
            flat["orders"][at["orders"] + np.arange(num_shown)].reshape(shape).astype(np.int64),
            flat["draws"][at["draws"] + np.arange(num_views)],
            answer[rows],
        )


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
