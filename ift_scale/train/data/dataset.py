"""Training examples as token ids: tokenised once by one process, kept in a file that every rank reads."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from ift_scale.config.train import TrainConfig
from ift_scale.errors import DataError, Place
from ift_scale.io.files import atomic_path


@dataclass(frozen=True)
class TokenizedSet:
    """Examples laid end to end. Example i is ids[offsets[i]:offsets[i + 1]] and stands in line i + 1 of the set's file.

    Shapes: ids and supervised (tokens,), offsets (examples + 1,), weights (examples,).
    """

    ids: np.ndarray
    supervised: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray
    num_truncated: int

    def examples(self) -> list[np.ndarray]:
        """The ids of each example."""
        return np.split(self.ids, self.offsets[1:-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @cached_property
    def computed_lengths(self) -> np.ndarray:
        """Tokens of each example up to the one that predicts its last supervised token: nothing reads what follows."""
        places = np.flatnonzero(self.supervised)
        return places[np.searchsorted(places, self.offsets[1:]) - 1] - self.offsets[:-1]

    @cached_property
    def first_rows(self) -> np.ndarray:
        """Place within each example of the first token that predicts a supervised one."""
        places, seconds = (
            np.flatnonzero(self.supervised),
            self.offsets[:-1] + 1,
        )  # nothing predicts a first token
        return places[np.searchsorted(places, seconds)] - seconds

    @cached_property
    def supervised_counts(self) -> np.ndarray:
        """Tokens of each example that are predicted in the loss; a first token has nothing before it to predict it from."""
        predicted = self.supervised.copy()
        predicted[self.offsets[:-1]] = False
        return np.add.reduceat(predicted, self.offsets[:-1], dtype=np.int64)


def check_enough(tokens: TokenizedSet, path: Path, config: TrainConfig) -> None:
    """DataError where the set of `path` does not fill one optimizer step."""
    found, wanted = len(tokens.lengths), config.global_batch_size
    if found < wanted:
        problem = f"{found} examples are fewer than one optimizer step of train.global_batch_size = {wanted}"
        raise DataError(
            Place(path), problem, "Lower train.global_batch_size, or build a larger set"
        )


def save(tokens: TokenizedSet, path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{part.name: getattr(tokens, part.name) for part in fields(tokens)})


def load(path: Path) -> TokenizedSet:
    with np.load(path) as arrays:
        parts = {name: arrays[name] for name in ("ids", "supervised", "offsets", "weights")}
        return TokenizedSet(**parts, num_truncated=int(arrays["num_truncated"]))
