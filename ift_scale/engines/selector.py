"""Selects the fastest strategy that computes a group of rows correctly.

The first strategy that applies is compared with `SingleRows` on the rows of the request itself. If
it does not suit a model, the engine logs it and falls back to the next one; the result is never
wrong.
"""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ift_scale.engines.rope import LengthClass
from ift_scale.engines.strategies import UNSUPPORTED, Batch, ScoredSuffix, SingleRows, Strategy

logger = logging.getLogger(__name__)

# Largest difference between a strategy and a single row's pass, in nats. bfloat16 rounds at 2^-8 in
# every layer; rounding in float32 grows with the size of the numbers.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}
_LARGE_LOGPROB, _MAY_BE_ROUNDING = 16.0, 10.0


class StrategySelector:
    """Strategies in order of speed, each used up to the length at which it was verified."""

    def __init__(self, strategies: Sequence[Strategy], single_rows: SingleRows, dtype: torch.dtype):
        self.strategies, self.single_rows, self.tolerance = (
            list(strategies),
            single_rows,
            _TOLERANCE[dtype],
        )
        self._verified: dict[tuple[str, LengthClass], int] = {}
        self._closed: set[tuple[str, LengthClass]] = set()

    def batches(
        self, kind: LengthClass, prefix: list[int], items: Sequence[ScoredSuffix]
    ) -> Iterator[Batch]:
        """Computes items of one length class after a prefix of the same class.

        Tries the strategies from the fastest on. The last resort is one pass per row.
        """
        length = len(prefix) + max(len(item.suffix) for item in items)
        # A row whose rotary frequencies apply to its own length only can share nothing.
        for strategy in [] if kind.own else self.strategies:
            key = (strategy.name, kind)
            verified = self._verified.get(key, 0)
            # A closed strategy failed beyond its verified length; shorter rows may still use it.
            if not strategy.serves(length) or (key in self._closed and length > verified):
                continue
            batches = strategy.batches(prefix, items)
            if length > verified:
                # Longer than ever before: compare the first batch with plain passes before use.
                first = self._first_batch(batches, key, prefix, items)
                if first is None:
                    self._closed.add(key)
                    continue
                self._verified[key] = length
                yield first
            yield from batches
            return
        yield from self.single_rows.batches(prefix, items)

    def is_open(self, strategy: Strategy, kind: LengthClass) -> bool:
        """False if the strategy was wrong for this class at every length tried."""
        key = (strategy.name, kind)
        return key not in self._closed or self._verified.get(key, 0) > 0

    def _first_batch(
        self,
        batches: Iterator[Batch],
        key: tuple[str, LengthClass],
        prefix: list[int],
        items: Sequence[ScoredSuffix],
    ) -> Batch | None:
        """Returns the first batch if it equals plain passes, else None and logs the reason.

        Compares the longest row and, in a strategy's first check, the most padded one.
        """
        verified = self._verified.get(key, 0)
        try:
            numbers, actual = next(batches)
            checked = {0} if verified else {0, len(numbers) - 1}
            gaps = [self._gap(prefix, items[numbers[row]], actual[row]) for row in checked]
            if max(gaps) <= 1:
                return numbers, actual
            problem = f"differs from a plain forward pass by {max(gaps) * self.tolerance:.3g} nats"
        except torch.OutOfMemoryError:
            raise
        except UNSUPPORTED as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            problem = f"does not support this model: {reason}"
        logger.warning(
            "%s: not used for rows of %d tokens or more (%s)", key[0], verified + 1, problem
        )
        return None

    def _gap(self, prefix: list[int], item: ScoredSuffix, actual: Tensor) -> float:
        """Returns the distance of a row from a plain pass, in tolerances.

        For a small excess, the tolerance is raised to three times the rounding of the plain pass
        itself: a deep model in float32 must not lose the fast strategy to rounding.
        """
        expected = self.single_rows.row(prefix, item)
        gap = gap_in_tolerances(actual, expected, self.tolerance)
        if 1 < gap <= _MAY_BE_ROUNDING:
            again = self.single_rows.row(prefix, item, copies=2)
            gap /= max(1.0, 3 * gap_in_tolerances(again, expected, self.tolerance))
        return gap


def gap_in_tolerances(actual: Tensor, expected: Tensor, tolerance: float) -> float:
    """Returns the largest difference in tolerances, infinite if only one of them is finite.

    The tolerance grows with log-probabilities beyond 16 nats, as float32's rounding does.
    """
    size = expected.abs().nan_to_num(0, 0, 0).max() / _LARGE_LOGPROB
    gap = (actual - expected).abs().masked_fill(actual == expected, 0.0)
    gap = gap.masked_fill(actual.isnan() & expected.isnan(), 0.0).nan_to_num(torch.inf, torch.inf)
    return float(gap.max() / (tolerance * max(1.0, float(size))))
