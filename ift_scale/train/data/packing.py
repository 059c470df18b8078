"""Assigns examples to optimizer steps, and within a step to ranks and micro-batches.

A step is a fixed set of examples, drawn by seed, epoch and step alone. Ranks and micro-batches are
assigned only within the step, so neither world size, token cap nor packing changes the result of
training. Pure functions of the examples' lengths.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ift_scale.config.train import TrainConfig
from ift_scale.train.model.path import Layout

Step = list[list[list[int]]]
"""One step: for each micro-batch, the example numbers of every rank."""


def steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
    return math.ceil(num_examples / global_batch_size)


def step_examples(
    num_examples: int, global_batch_size: int, num_epochs: int, seed: int
) -> Iterator[list[int]]:
    """Yields the example numbers of each optimizer step.

    Every example occurs once per epoch; an epoch's last step may be smaller.
    """
    for epoch in range(num_epochs):
        order = np.random.Generator(np.random.Philox([seed, epoch])).permutation(num_examples)
        for start in range(0, num_examples, global_batch_size):
            yield order[start : start + global_batch_size].tolist()


def max_micro_batch_tokens(
    lengths: np.ndarray, config: TrainConfig, world_size: int, layout: Layout = "packed"
) -> int:
    """Returns about the largest number of tokens in one rank's micro-batch.

    This is the cap, or one rank's share of the longest possible step if that is smaller.
    """
    longest = np.sort(lengths)[-config.global_batch_size :]
    if layout == "single" or not config.packing:
        return int(longest[-1])
    if layout == "padded":
        return min(config.tokens_per_micro_batch, int(longest[-1]) * len(longest))
    return min(config.tokens_per_micro_batch, int(longest.sum() / world_size + longest[-1]))


def cost(lengths: np.ndarray, hidden_size: int) -> np.ndarray:
    """Returns the relative work of each example: L + L^2 / (6 * hidden), linear and attention.

    A Llama-like layer takes about 24 * hidden^2 FLOPs per token in its matrices and 4 * hidden * L
    in attention.
    """
    lengths = lengths.astype(np.float64)
    return lengths + lengths**2 / (6 * hidden_size)


def assign_to_ranks(
    examples: Sequence[int],
    lengths: np.ndarray,
    world_size: int,
    token_cap: int,
    hidden_size: int,
    layout: Layout = "packed",
) -> Step:
    """Assigns the examples to (micro-batch, rank) bins of at most `token_cap` tokens each.

    Balances the bins' costs by greedy bin packing, with as few micro-batches as it finds. No
    example is split or dropped. A bin may be empty if there are fewer examples than ranks. With the
    layout `single`, each bin gets one example; with `padded`, examples of similar length, whose
    padding counts as tokens.
    """
    assert all(lengths[i] <= token_cap for i in examples)
    costs = cost(lengths, hidden_size)
    # Largest first: small examples then even out the differences. Ties by number, so that all
    # ranks compute the same assignment.
    ordered = sorted(examples, key=lambda i: (-costs[i], i))
    if layout == "padded":
        return _by_rank(_similar(ordered, lengths, world_size, token_cap), costs, world_size)
    tokens = int(sum(lengths[i] for i in examples))
    num_micro = (
        max(1, math.ceil(tokens / (token_cap * world_size)))
        if layout == "packed"
        else math.ceil(len(ordered) / world_size)
    )
    # The lower bound may not be reachable: add micro-batches until everything fits.
    while (bins := _fill(ordered, lengths, costs, num_micro * world_size, token_cap)) is None:
        num_micro += 1
    return _by_rank(bins, costs, world_size)


def _by_rank(bins: list[list[int]], costs: np.ndarray, world_size: int) -> Step:
    """Returns a whole number of bins per rank as micro-batches.

    The ranks wait for each other in every micro-batch, so bins of similar cost go together.
    """
    bins = sorted(bins, key=lambda examples: -sum(costs[i] for i in examples))
    return [bins[start : start + world_size] for start in range(0, len(bins), world_size)]


def _similar(
    ordered: list[int], lengths: np.ndarray, world_size: int, token_cap: int
) -> list[list[int]]:
    """Returns bins of consecutive examples, longest first, a whole number per rank.

    A bin's size is the number of its examples times its longest. The largest bins are halved, and
    empty ones added, until there are enough.
    """
    bins: list[list[int]] = []
    for example in ordered:
        if not bins or (len(bins[-1]) + 1) * lengths[bins[-1][0]] > token_cap:
            bins.append([])
        bins[-1].append(example)
    num_bins = math.ceil(len(bins) / world_size) * world_size
    while len(bins) < min(num_bins, len(ordered)):
        largest = max(bins, key=len)
        half = len(largest) // 2
        bins.append(largest[half:])
        del largest[half:]
    return bins + [[] for _ in range(num_bins - len(bins))]


def _fill(
    ordered: list[int], lengths: np.ndarray, costs: np.ndarray, num_bins: int, token_cap: int
) -> list[list[int]] | None:
    """Puts each example into the cheapest bin with room for it; None if one does not fit."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    load, room = np.zeros(num_bins), np.full(num_bins, token_cap)
    for example in ordered:
        open_load = np.where(room >= lengths[example], load, np.inf)
        cheapest = int(open_load.argmin())
        if not np.isfinite(open_load[cheapest]):
            return None
        bins[cheapest].append(example)
        load[cheapest] += costs[example]
        room[cheapest] -= lengths[example]
    return bins


def planned_steps(
    lengths: np.ndarray,
    config: TrainConfig,
    world_size: int,
    hidden_size: int,
    seed: int,
    layout: Layout = "packed",
    chosen: np.ndarray | None = None,
) -> list[Step]:
    """Returns every optimizer step of an arm, assigned to ranks and micro-batches.

    `lengths`: number of computed tokens of each example of the set. `chosen`: numbers of the
    examples to train on, ascending; None for all. The steps are those of a set that contains the
    chosen examples only. Without `train.packing`, the layout is `single`.
    """
    layout = layout if config.packing else "single"
    numbers = np.arange(len(lengths)) if chosen is None else chosen
    steps = step_examples(len(numbers), config.global_batch_size, config.epochs, seed)
    cap = config.tokens_per_micro_batch
    return [
        assign_to_ranks(numbers[examples].tolist(), lengths, world_size, cap, hidden_size, layout)
        for examples in steps
    ]


def loss_scales(
    examples: Sequence[int], counts: np.ndarray, weights: np.ndarray, average: str
) -> np.ndarray:
    """Returns the factor of each example's summed cross-entropy in the step's loss.

    With n supervised tokens and weight w of an example, the factor is w / sum(w * n) for the mean
    over tokens and w / (n * sum(w)) for the mean over examples. The sums are over the whole step,
    not over a rank or micro-batch, which makes the loss independent of the assignment. Shape (all
    examples,); 0 for examples outside the step.
    """
    chosen = np.asarray(examples)
    n, w = counts[chosen].astype(np.float64), weights[chosen].astype(np.float64)
    scales = np.zeros(len(counts))
    scales[chosen] = w / (w * n).sum() if average == "token" else w / (n * w.sum())
    return scales


def imbalance(step: Step, lengths: np.ndarray, hidden_size: int) -> float:
    """Returns the slowest rank's cost relative to the mean, over all micro-batches (1 is best)."""
    costs = np.array(
        [[cost(lengths[examples], hidden_size).sum() for examples in micro] for micro in step]
    )
    return float(costs.max(axis=1).sum() / costs.mean(axis=1).sum())
