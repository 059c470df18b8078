"""Training examples as token ids: tokenised once, in files that every rank maps into memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ift_scale.config.train import TrainConfig
from ift_scale.errors import DataError, IFTScaleError, Place
from ift_scale.io.files import atomic_folder, read_json, write_json
from ift_scale.io.manifests import digest_of, file_digests

COUNTS = "counts.json"
"""File of a set's folder with its counts and the digests of its arrays."""
_EXAMPLES_AT_ONCE = 1 << 14


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

    def example(self, number: int) -> np.ndarray:
        """Returns the ids of example `number`, from 0."""
        return self.ids[self.offsets[number] : self.offsets[number + 1]]

    def examples(self) -> Iterator[np.ndarray]:
        """Yields the ids of each example."""
        return (self.ids[start:end] for start, end in pairwise(self.offsets.tolist()))

    @property
    def stand_in(self) -> int:
        """Number of the example that a rank without examples computes, with weight 0."""
        return int(self.lengths.argmin())

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @cached_property
    def computed_lengths(self) -> np.ndarray:
        """Tokens of each example up to the row that predicts its last supervised token.

        The loss does not depend on later tokens.
        """
        return self._by_block(_last_positions)

    @cached_property
    def first_rows(self) -> np.ndarray:
        """Position within each example of the first row that predicts a supervised token."""
        return self._by_block(_first_rows)

    @cached_property
    def supervised_counts(self) -> np.ndarray:
        """Number of supervised tokens of each example, except its first, which no row predicts."""
        return self._by_block(_supervised_counts)

    def _by_block(self, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Returns a measure of each example, computed from `supervised` a part at a time.

        Its arguments are the mask and the offsets of some examples. Positions of all supervised
        tokens of a large set would take eight times the memory of its mask.
        """
        parts = []
        for first in range(0, len(self.offsets) - 1, _EXAMPLES_AT_ONCE):
            offsets = self.offsets[first : first + _EXAMPLES_AT_ONCE + 1]
            parts.append(measure(self.supervised[offsets[0] : offsets[-1]], offsets - offsets[0]))
        return np.concatenate(parts)


def _last_positions(supervised: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    positions = np.flatnonzero(supervised)
    return positions[np.searchsorted(positions, offsets[1:]) - 1] - offsets[:-1]


def _first_rows(supervised: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    positions = np.flatnonzero(supervised)
    seconds = offsets[:-1] + 1  # no row predicts the first token
    return positions[np.searchsorted(positions, seconds)] - seconds


def _supervised_counts(supervised: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    predicted = supervised.copy()
    predicted[offsets[:-1]] = False
    return np.add.reduceat(predicted, offsets[:-1], dtype=np.int64)


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
    """Writes a set to the folder `path`."""
    join([tokens], path)


def join(parts: Sequence[TokenizedSet], path: Path) -> None:
    """Writes sets, one after the other, as one set to the folder `path`.

    Memory does not grow with parts that are mapped into memory.
    """
    num_tokens = sum(len(part.ids) for part in parts)
    num_examples = sum(len(part.weights) for part in parts)
    with atomic_folder(path) as temporary:
        _write(temporary, "ids", np.int32, num_tokens, (part.ids for part in parts))
        _write(temporary, "supervised", np.bool_, num_tokens, (part.supervised for part in parts))
        _write(temporary, "weights", np.float64, num_examples, (part.weights for part in parts))
        _write(temporary, "offsets", np.int64, num_examples + 1, _joined_offsets(parts))
        content = {
            "num_truncated": sum(part.num_truncated for part in parts),
            "digests": _digests(temporary),
        }
        write_json(temporary / COUNTS, content | {"digest": digest_of(content)})


def _digests(folder: Path) -> dict[str, str]:
    """Returns the digests of a set's arrays by the names of their files."""
    files = sorted(folder.glob("*.npy"))
    return dict(zip((file.name for file in files), file_digests(files), strict=True))


def is_intact(path: Path) -> bool:
    """True if the folder `path` has a set whose files are as they were written."""
    try:
        content = read_json(path / COUNTS)
        digest = content.pop("digest")
        return bool(digest == digest_of(content) and content["digests"] == _digests(path))
    except (OSError, IFTScaleError, ValueError, LookupError, TypeError):
        return False


def _write(folder: Path, name: str, dtype: Any, size: int, parts: Iterable[np.ndarray]) -> None:
    """Writes parts of one array to FOLDER/NAME.npy, one after the other."""
    described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (size,)}
    with (folder / f"{name}.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, described)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype=dtype).data)


def _joined_offsets(parts: Sequence[TokenizedSet]) -> Iterator[np.ndarray]:
    yield np.zeros(1, dtype=np.int64)
    total = 0
    for part in parts:
        yield part.offsets[1:] + total
        total += int(part.offsets[-1])


def load(path: Path) -> TokenizedSet:
    """Returns the set in a folder, mapped into memory: what is not used is not read."""
    arrays = {
        name: np.asarray(np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        for name in ("ids", "supervised", "offsets", "weights")
    }
    return TokenizedSet(**arrays, num_truncated=read_json(path / COUNTS)["num_truncated"])
