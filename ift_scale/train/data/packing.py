"""Step-parity packing: which examples make an optimizer step, and where each of them is computed.

A step is a fixed set of examples, drawn by seed, epoch and step alone. Only inside the step are they dealt to ranks and
micro-batches, so world size, token cap and packing cannot change what is learnt. Pure functions over lengths.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ift_scale.config import TrainConfig

# One step: micro-batches, in each the example numbers of every rank.
Step = list[list[list[int]]]


def steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
    return math.ceil(num_examples / global_batch_size)


def step_examples(
    num_examples: int, global_batch_size: int, num_epochs: int, seed: int
) -> Iterator[list[int]]:
    """The example numbers of each optimizer step. Every example comes once an epoch; an epoch's last step may be smaller."""
    for epoch in range(num_epochs):
        order = np.random.Generator(np.random.Philox([seed, epoch])).permutation(num_examples)
        for start in range(0, num_examples, global_batch_size):
            yield order[start : start + global_batch_size].tolist()


def most_tokens(lengths: np.ndarray, config: TrainConfig, world_size: int) -> int:
    """Most tokens of one rank's micro-batch, about: the cap, or a share of the step that has the longest examples, dealt evenly."""
    longest = np.sort(lengths)[-config.global_batch_size :]
    if not config.packing:
        return int(longest[-1])
    return min(config.tokens_per_micro_batch, int(longest.sum() / world_size + longest[-1]))


def cost(lengths: np.ndarray, hidden_size: int) -> np.ndarray:
    """Work of each example, up to a factor: L + L^2 / (6 * hidden), linear layers and attention.

    A Llama-shaped layer takes about 24 * hidden^2 FLOPs a token in its matrices and 4 * hidden * L in attention.
    """
    lengths = lengths.astype(np.float64)
    return lengths + lengths**2 / (6 * hidden_size)


def deal(
    examples: Sequence[int],
    lengths: np.ndarray,
    world_size: int,
    token_cap: int,
    hidden_size: int,
    packed: bool = True,
) -> Step:
    """Examples dealt to (micro-batch, rank) places, each at most `token_cap` tokens, the costs balanced.

    Greedy, dearest first, to the cheapest place that has room; one more micro-batch is tried until all fit. No example is
    split or dropped. A place may stay empty when there are fewer examples than ranks. Not `packed`: one example a place.
    """
    assert all(lengths[i] <= token_cap for i in examples)
    costs = cost(lengths, hidden_size)
    ordered = sorted(examples, key=lambda i: (-costs[i], i))
    tokens = int(sum(lengths[i] for i in examples))
    num_micro = (
        max(1, math.ceil(tokens / (token_cap * world_size)))
        if packed
        else math.ceil(len(ordered) / world_size)
    )
    while (places := _fill(ordered, lengths, costs, num_micro * world_size, token_cap)) is None:
        num_micro += 1
    # Dearest places first, so that the ranks of one micro-batch have like work.
    places.sort(key=lambda place: -sum(costs[i] for i in place))
    return [places[m * world_size : (m + 1) * world_size] for m in range(num_micro)]


def _fill(
    ordered: list[int], lengths: np.ndarray, costs: np.ndarray, num_places: int, token_cap: int
) -> list[list[int]] | None:
    places: list[list[int]] = [[] for _ in range(num_places)]
    load, room = np.zeros(num_places), np.full(num_places, token_cap)
    for example in ordered:
        open_load = np.where(room >= lengths[example], load, np.inf)
        place = int(open_load.argmin())
        if not np.isfinite(open_load[place]):
            return None
        places[place].append(example)
        load[place] += costs[example]
        room[place] -= lengths[example]
    return places


def planned_steps(
    lengths: np.ndarray, config: TrainConfig, world_size: int, hidden_size: int, seed: int
) -> list[Step]:
    """Every optimizer step of an arm, dealt to ranks and micro-batches. `lengths`: the computed tokens of each example."""
    examples = step_examples(len(lengths), config.global_batch_size, config.epochs, seed)
    cap, packed = config.tokens_per_micro_batch, config.packing
    return [deal(e, lengths, world_size, cap, hidden_size, packed) for e in examples]


def loss_scales(
    examples: Sequence[int], counts: np.ndarray, weights: np.ndarray, average: str
) -> np.ndarray:
    """Factor of each example's summed cross-entropy in the step's loss, shape (all examples,), 0 outside of the step.

    With n the supervised tokens of an example and w its weight: w / sum(w * n) for the mean over tokens, w / (n * sum(w)) for the
    mean over examples.
    """
    chosen = np.asarray(examples)
    n, w = counts[chosen].astype(np.float64), weights[chosen].astype(np.float64)
    scales = np.zeros(len(counts))
    scales[chosen] = w / (w * n).sum() if average == "token" else w / (n * w.sum())
    return scales


def imbalance(step: Step, lengths: np.ndarray, hidden_size: int) -> float:
    """Cost of the slowest rank over the mean, summed over micro-batches: 1.0 is perfect."""
    table = np.array(
        [[cost(lengths[place], hidden_size).sum() for place in micro] for micro in step]
    )
    return float(table.max(axis=1).sum() / table.mean(axis=1).sum())
