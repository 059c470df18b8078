"""Training examples as token ids: tokenised once, in a file that every rank reads."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from ift_scale.config.train import TrainConfig
from ift_scale.errors import DataError, Place
from ift_scale.io.files import atomic_path


@dataclass(frozen=True)
class TokenizedSet:
    """Examples laid end to end: example i, from line i + 1 of the set's file, is
    ids[offsets[i]:offsets[i + 1]].

    Shapes: ids and supervised (tokens,), offsets (examples + 1,), weights (examples,).
    """

    ids: np.ndarray
    supervised: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray
    num_truncated: int

    def examples(self) -> list[np.ndarray]:
        """Returns the ids of each example."""
        return np.split(self.ids, self.offsets[1:-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @cached_property
    def computed_lengths(self) -> np.ndarray:
        """Tokens of each example up to the row that predicts its last supervised token.

        The loss does not depend on later tokens.
        """
        positions = np.flatnonzero(self.supervised)
        return positions[np.searchsorted(positions, self.offsets[1:]) - 1] - self.offsets[:-1]

    @cached_property
    def first_rows(self) -> np.ndarray:
        """Position within each example of the first row that predicts a supervised token."""
        positions = np.flatnonzero(self.supervised)
        seconds = self.offsets[:-1] + 1  # no row predicts the first token
        return positions[np.searchsorted(positions, seconds)] - seconds

    @cached_property
    def supervised_counts(self) -> np.ndarray:
        """Number of supervised tokens of each example, except its first, which no row predicts."""
        predicted = self.supervised.copy()
        predicted[self.offsets[:-1]] = False
        return np.add.reduceat(predicted, self.offsets[:-1], dtype=np.int64)


def check_enough(count: int, num_held_out: int, path: Path, config: TrainConfig) -> None:
    """Raises DataError if the `count` examples to train on do not fill one optimizer step.

    `num_held_out`: examples of the set that are held out for validation.
    """
    batch_size = config.global_batch_size
    if count < batch_size:
        rest = f", after {num_held_out} are held out for validation," if num_held_out else ""
        problem = (
            f"{count} examples{rest} are fewer than one optimizer step of"
            f" train.global_batch_size = {batch_size}"
        )
        share = "Lower train.validation.share, lower" if num_held_out else "Lower"
        remedy = f"{share} train.global_batch_size, or build a larger set"
        raise DataError(Place(path), problem, remedy)


def save(tokens: TokenizedSet, path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{part.name: getattr(tokens, part.name) for part in fields(tokens)})


def load(path: Path) -> TokenizedSet:
    with np.load(path) as arrays:
        parts = {name: arrays[name] for name in ("ids", "supervised", "offsets", "weights")}
        return TokenizedSet(**parts, num_truncated=int(arrays["num_truncated"]))
