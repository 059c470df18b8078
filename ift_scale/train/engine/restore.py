"""Restores the most changed parameters of a trained arm to its base model's values.

After the parameter restoration of Ye et al. 2025 (arXiv 2509.16596): how much of an update does
good, and how much only harm? Of all N parameters, the round(share * N) with the largest change get
the base model's values. The change is absolute, |trained - base|, with the base model's value
rounded to the trained arm's dtype: the difference that restoring makes. Among parameters that
changed equally, those that come first in the weight files are restored.

The threshold is exact and over the whole model. Non-negative float32 numbers have the order of
their bits as integers, so two passes over the weights find it: one counts the upper 16 bits of all
changes, one the lower 16 bits of those with the threshold's upper ones. A third pass writes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ift_scale.train.engine.average import pieces, tensors, write

_HALF = 1 << 16


def restore(base: Path, trained: Path, folder: Path, share: float) -> dict[str, float]:
    """Writes to `folder` the model `trained` with the share `share` of its parameters as in `base`.

    Files and dtypes as in `average.write`. Returns the manifest's counts: `parameters`, the
    `changed` ones, the `restored` ones of them (fewer than asked for if fewer changed), the
    `threshold`, and the part of the squared change that was restored, `restored_change`.
    """
    selection = _select(base, trained, share)
    counts = write(base, trained, folder, selection.values)
    return counts | selection.counts()


@dataclass
class _Selection:
    """The parameters to restore: changes above `threshold` (bits), and `ties` that equal it."""

    parameters: int
    threshold: int
    ties: int
    changed: int = 0
    restored: int = 0
    squares: float = 0.0
    restored_squares: float = 0.0

    def values(self, start: Tensor, end: Tensor) -> Iterator[Tensor]:
        """Yields a tensor's values after restoration; every tensor once, in order."""
        for one, other in pieces(start, end):
            original = one.to(other.dtype)
            bits_N = _change(original, other)
            chosen_N = bits_N > self.threshold
            if self.ties:
                equal_N = bits_N == self.threshold
                first_N = equal_N & (equal_N.cumsum(0, dtype=torch.int32) <= self.ties)
                self.ties -= int(first_N.count_nonzero())
                chosen_N |= first_N
            squares_N = bits_N.view(torch.float32).square()
            restored_N = squares_N * chosen_N
            self.changed += int(bits_N.count_nonzero())
            self.restored += int((bits_N * chosen_N).count_nonzero())
            self.squares += float(squares_N.sum(dtype=torch.float64))
            self.restored_squares += float(restored_N.sum(dtype=torch.float64))
            yield torch.where(chosen_N, original, other)

    def counts(self) -> dict[str, float]:
        bits = torch.tensor(self.threshold, dtype=torch.int32)
        threshold = float(bits.view(torch.float32))
        counts = {
            "parameters": self.parameters,
            "changed": self.changed,
            "restored": self.restored,
            "restored_change": self.restored_squares / self.squares if self.squares else 0.0,
        }
        # A share that rounds to no parameter has none.
        return counts | ({"threshold": threshold} if math.isfinite(threshold) else {})


def _change(original: Tensor, other: Tensor) -> Tensor:
    """Returns the absolute changes as the bits of float32, int32 (N,); NaN is above infinity."""
    bits_N = (other.float() - original.float()).view(torch.int32)
    return bits_N & 0x7FFFFFFF


def _changes(base: Path, trained: Path) -> Iterator[Tensor]:
    for start, end in tensors(base, trained):
        for one, other in pieces(start, end):
            yield _change(one.to(other.dtype), other)


def _select(base: Path, trained: Path, share: float) -> _Selection:
    upper = torch.zeros(_HALF // 2, dtype=torch.int64)
    for bits_N in _changes(base, trained):
        upper += torch.bincount(bits_N >> 16, minlength=len(upper))
    parameters = int(upper.sum())
    high, left = _from_the_top(upper, round(share * parameters))
    lower = torch.zeros(_HALF, dtype=torch.int64)
    for bits_N in _changes(base, trained):
        lower += torch.bincount(bits_N[bits_N >> 16 == high] & (_HALF - 1), minlength=_HALF)
    low, ties = _from_the_top(lower, left)
    return _Selection(parameters, high * _HALF + low, ties)


def _from_the_top(counts: Tensor, wanted: int) -> tuple[int, int]:
    """Returns (the highest number with at least `wanted` items from it upwards, the items that are
    wanted of that number itself)."""
    from_top = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(from_top, wanted))
    above = int(from_top[index - 1]) if index else 0
    return len(counts) - 1 - index, wanted - above
