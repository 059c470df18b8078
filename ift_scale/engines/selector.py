"""Selects the fastest strategy that computes a group of rows correctly.

For every kind of row (`row_kinds`), a strategy is compared with `SingleRows` on the first row of
this kind, and again on one that is longer than all before. If it differs or fails, the engine
logs it and the next strategy computes the batch; the result is never wrong.
"""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ift_scale.engines.rope import LengthClass
from ift_scale.engines.row_kinds import LengthBuckets, RowKind
from ift_scale.engines.strategies import (
    UNSUPPORTED,
    ScoredSuffix,
    SingleRows,
    Strategy,
    batches_by_length,
)

logger = logging.getLogger(__name__)

# Largest difference between a strategy and a single row's pass, in nats. bfloat16 rounds at 2^-8 in
# every layer; rounding in float32 grows with the size of the numbers.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}
_LARGE_LOGPROB, _MAY_BE_ROUNDING = 16.0, 10.0

Batch = tuple[list[int], list[Tensor]]
"""Item numbers, longest first, and for each the flat float64 log-probabilities of its targets."""


class StrategySelector:
    """Strategies in order of speed, each used for the kinds of rows on which it was right."""

    def __init__(
        self,
        strategies: Sequence[Strategy],
        single_rows: SingleRows,
        buckets: LengthBuckets,
        dtype: torch.dtype,
    ):
        self.strategies, self.single_rows = list(strategies), single_rows
        self.buckets, self.tolerance = buckets, TOLERANCE[dtype]
        self.verified: dict[tuple[str, RowKind], int] = {}
        """The most tokens of a verified row, by strategy and kind."""
        self._wrong: set[tuple[str, RowKind]] = set()

    def batches(
        self, lengths: LengthClass, prefix: list[int], items: Sequence[ScoredSuffix]
    ) -> Iterator[Batch]:
        """Computes items of one length class after a prefix of the same class.

        Tries the strategies from the fastest on. The last resort is one pass per row.
        """
        left = list(range(len(items)))
        # A row whose rotary frequencies apply to its own length only can share nothing.
        for strategy in [] if lengths.own else list(self.strategies):
            refused: list[int] = []
            yield from self._computed(strategy, lengths, prefix, items, left, refused)
            left = refused
        for number in sorted(left, key=lambda i: -len(items[i].suffix)):
            yield [number], [self.single_rows.row(prefix, items[number])]

    def _computed(
        self,
        strategy: Strategy,
        lengths: LengthClass,
        prefix: list[int],
        items: Sequence[ScoredSuffix],
        numbers: Sequence[int],
        refused: list[int],
    ) -> Iterator[Batch]:
        """Yields the batches that the strategy computes; adds all other numbers to `refused`."""
        served = [n for n in numbers if strategy.serves(len(prefix) + len(items[n].suffix))]
        refused += sorted({*numbers} - {*served})
        prepared = None
        budget, repeated = strategy.passes.batch_tokens, strategy.repeated(prefix)
        for batch in batches_by_length(repeated, [items[n] for n in served], budget):
            chosen = [served[n] for n in batch]
            rows = [items[n] for n in chosen]
            kinds = self.buckets.kinds(
                lengths,
                len(prefix),
                [len(row.suffix) for row in rows],
                [len(row.targets) for row in rows],
            )
            if strategy not in self.strategies or any(
                (strategy.name, kind) in self._wrong for kind in kinds
            ):
                refused += chosen
                continue
            try:
                prepared = strategy.prepare(prefix) if prepared is None else prepared
                values = strategy.logprobs(prefix, prepared, rows)
            except torch.OutOfMemoryError:
                raise
            except UNSUPPORTED as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                self._close(strategy, kinds, f"does not support this model: {reason}")
                refused += chosen
                continue
            if self._are_right(strategy, prefix, rows, kinds, values):
                yield chosen, values
            else:
                refused += chosen

    def _are_right(
        self,
        strategy: Strategy,
        prefix: list[int],
        rows: Sequence[ScoredSuffix],
        kinds: Sequence[RowKind],
        values: Sequence[Tensor],
    ) -> bool:
        """Compares one row of every kind that is new, or longer than before, with a plain pass."""
        # The first row of a kind is its longest.
        first = {kind: number for number, kind in reversed(list(enumerate(kinds)))}
        for kind, number in first.items():
            key, length = (strategy.name, kind), len(prefix) + len(rows[number].suffix)
            if length <= self.verified.get(key, 0):
                continue
            gap = self._gap(prefix, rows[number], values[number])
            if gap > 1:
                problem = f"differs from a plain forward pass by {gap * self.tolerance:.3g} nats"
                self._close(strategy, [kind], f"{problem} in a row of {length} tokens")
                return False
            self.verified[key] = length
        return True

    def _close(self, strategy: Strategy, kinds: Sequence[RowKind], problem: str) -> None:
        """Does not use the strategy again for these kinds, or at all if it has never been right."""
        self._wrong |= {(strategy.name, kind) for kind in kinds}
        was_right = any(name == strategy.name for name, _ in self.verified)
        if not was_right and strategy in self.strategies:
            self.strategies.remove(strategy)
        where = " for rows like these" if was_right else ""
        logger.warning("%s: not used%s (%s)", strategy.name, where, problem)

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
