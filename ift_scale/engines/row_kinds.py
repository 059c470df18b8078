"""Kinds of rows: properties other than its tokens that a forward pass may depend on.

A strategy that is right for one row may be wrong for another: beyond a window, for a suffix shorter
than a convolution, next to a longer row, or in a batch of one. Rows of one kind agree in all of
these, so a strategy is compared with a plain forward pass once per kind (`selector`).

Some models choose tokens of the row by their scores (`torch.topk` over positions), for example
DeepSeek's sparse attention. Rounding and padding then change the choice for some rows and not for
others of the same kind. No strategy but the plain pass is safe for them (`selects_tokens`).
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ift_scale.engines.rope import LengthClass

_LONGEST = 1 << 20
# Two lengths in tokens. They differ after division by 4 or 8 too (compressed attention).
_COMPARED_LENGTHS = (17, 41)
_LONGEST_COMPARED = 2048


class RowKind(NamedTuple):
    """Lengths are numbers of buckets of `LengthBuckets`, 0 for no token.

    `padded_to`: the bucket of the batch's longest row, or 0 if the row itself is that long.
    `place`: 0 for a batch of one row, 1 for the first row of several, 2 for the others.
    """

    lengths: LengthClass
    prefix: int
    suffix: int
    total: int
    padded_to: int
    place: int
    scores_several: bool


class LengthBuckets:
    """Lengths between neighbouring limits: the powers of 2 and the whole numbers of a config.

    The numbers of a config include its windows, chunks, convolutions and numbers of positions.
    Models differ in whether a limit itself is inside, so each is a bucket by itself.
    """

    def __init__(self, config: Mapping[str, Any]):
        limits = {1 << n for n in range(20)} | set(_whole_numbers(config))
        self._edges = sorted({edge for n in limits for edge in (n, n + 1) if n < _LONGEST})

    def of(self, length: int) -> int:
        return bisect_right(self._edges, length)

    def kinds(
        self,
        lengths: LengthClass,
        prefix_length: int,
        suffix_lengths: Sequence[int],
        target_counts: Sequence[int],
    ) -> list[RowKind]:
        """Returns the kind of each row of a batch after a prefix of the same length class."""
        longest = max(suffix_lengths)
        return [
            RowKind(
                lengths,
                self.of(prefix_length),
                self.of(suffix),
                self.of(prefix_length + suffix),
                self.of(prefix_length + longest) if suffix < longest else 0,
                0 if len(suffix_lengths) == 1 else min(number, 1) + 1,
                count > 1,
            )
            for number, (suffix, count) in enumerate(
                zip(suffix_lengths, target_counts, strict=True)
            )
        ]


def _whole_numbers(value: Any) -> Iterator[int]:
    """Yields the positive whole numbers of a config.json, except token ids."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            if not str(name).endswith(("token_id", "token_ids")):
                yield from _whole_numbers(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _whole_numbers(part)
    elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
        yield value


class _Selections(TorchDispatchMode):
    """Records the number of values from which each `topk` selects, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in (torch.ops.aten.topk, torch.ops.aten.kthvalue):
            values, dim = args[0], args[2] if len(args) > 2 else (kwargs or {}).get("dim", -1)
            self.sizes.append(values.shape[dim])
        return func(*args, **(kwargs or {}))


def selects_tokens(model: Any, longest: int, **options: Any) -> bool:
    """True if a `topk` in the model's forward pass selects among tokens.

    A router's `topk` selects among experts, whose number does not depend on the row's length.
    `longest`: greatest number of tokens of a row. `options` are those of the model's plain forward
    pass. A config with blocks is compared beyond two of them, too, up to `_LONGEST_COMPARED`.
    """
    blocks = _block_sizes(model.config.to_dict())
    lengths = [*_COMPARED_LENGTHS, *(2 * size + 1 for size in blocks)]
    sizes = []
    for length in sorted({min(length, longest, _LONGEST_COMPARED) for length in lengths}):
        ids = torch.arange(length, device=model.device)[None] % 7 + 1
        with torch.no_grad(), _Selections() as selections:
            model(ids, **options)
        sizes.append(selections.sizes)
    return any(other != sizes[0] for other in sizes)


def _block_sizes(value: Any) -> Iterator[int]:
    """Yields the sizes of a config's blocks of tokens."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            if "block_size" in str(name) and type(part) is int and part > 0:
                yield part
            else:
                yield from _block_sizes(part)
