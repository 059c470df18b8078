"""Ways to compute log-probabilities of many rows, from the fastest to a plain forward pass per row.

- `Packed` (CPU, Llama-like layers): suffixes without padding behind a prefix that is computed once
  (`shared_prefix`), up to the length at which the model's masks stop being plainly causal.
- `Batched`: rows padded on the right, behind copies of the prefix's KV cache or whole. Every token
  has the index and the position of a single row's pass, and padding lies behind every wanted
  position. So causal masks, sliding windows, chunks, local attention, ALiBi and learned positions
  need no special case.
- `Alone`: one row per forward pass. This is the reference.

`Ladder` takes the first way that applies and compares it with `Alone` on the rows that are really
asked, so a model that a way does not suit falls back with a message and is never computed wrongly.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ift_scale.engines import shared_prefix
from ift_scale.engines.rope import LengthClass, RopeLimits

logger = logging.getLogger(__name__)

# Largest difference between a way and a single row's pass, in nats. bfloat16 rounds at 2^-8 in every
# layer; rounding in float32 grows with the size of the numbers.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}
_LARGE_LOGPROB, _MAY_BE_ROUNDING = 16.0, 10.0
# A way that a model does not serve raises one of these.
NOT_SERVED = (TypeError, RuntimeError, AttributeError, ValueError, LookupError, AssertionError)


class Wanted(NamedTuple):
    """A suffix, and the ids whose log-probabilities are wanted after each of its last `len(targets)`
    positions."""

    suffix: list[int]
    targets: list[list[int]]


Batch = tuple[list[int], list[Tensor]]
"""Item numbers, the longest first, and for each the log-probabilities of its targets, flat, float64."""


class Way(Protocol):
    name: str

    def serves(self, length: int) -> bool:
        """True if rows of `length` tokens may be computed in this way."""

    def batches(self, prefix: list[int], items: Sequence[Wanted]) -> Iterator[Batch]:
        """Compute all items in batches; the first batch has the longest item."""


class ForwardPasses:
    """A model, and how its forward passes are run."""

    def __init__(self, model: Any, batch_tokens: int):
        self.model, self.batch_tokens = model, batch_tokens
        self.rope = RopeLimits(model)
        # Also between the passes of `generate`: transformers 5.19 fails in the second one past LongRoPE's limit
        # where each kind of layer has rotary parameters of its own.
        rope = self.rope  # a hook that held `self` would keep the model alive
        model.register_forward_pre_hook(lambda *_: rope.reset())
        self._plain_attention = model.config._attn_implementation

    def use_attention(self, name: str | None = None) -> None:
        """Set the attention function; None is the model's own."""
        name = name or self._plain_attention
        if self.model.config._attn_implementation != name:
            self.model.set_attn_implementation(name)

    @torch.inference_mode()
    def logits(
        self, ids_BT: list[list[int]], rows: list[int], places: list[int], **options: Any
    ) -> tuple[Tensor, Any]:
        """(logits at (rows[i], places[i]), shape (num_wanted, vocabulary); the model's output)."""
        ids = torch.tensor(ids_BT, device=self.model.device)
        rows_R, places_R = torch.tensor(rows), torch.tensor(places)

        def select(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            # Only the wanted rows pass the LM head: its logits would be the largest array of all.
            hidden, *others = args
            return (
                (hidden[rows_R, places_R][None], *others) if hidden.shape[:2] == ids.shape else None
            )

        head = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(select) if head is not None else None
        try:
            out = self.model(ids, **options)
        finally:
            if handle is not None:
                handle.remove()
        logits = out.logits
        return logits[0] if logits.shape[:2] == (1, len(rows)) else logits[rows_R, places_R], out


class Alone:
    """One row per forward pass, nothing shared."""

    name = "single rows"

    def __init__(self, passes: ForwardPasses):
        self.passes = passes

    def serves(self, length: int) -> bool:
        return True

    def batches(self, prefix: list[int], items: Sequence[Wanted]) -> Iterator[Batch]:
        for number in sorted(range(len(items)), key=lambda i: -len(items[i].suffix)):
            yield [number], [self.row(prefix, items[number])]

    def row(self, prefix: list[int], item: Wanted, copies: int = 1) -> Tensor:
        """Log-probabilities of one row. Copies of it in the batch change nothing but rounding."""
        ids, count = prefix + item.suffix, len(item.targets)
        self.passes.use_attention()
        logits_TV, _ = self.passes.logits(
            [ids] * copies, [0] * count, list(range(len(ids) - count, len(ids)))
        )
        return picked(logits_TV, item.targets)


class Batched:
    """Batches padded on the right, behind copies of the prefix's KV cache or (`caches` False) whole."""

    def __init__(self, passes: ForwardPasses, caches: bool):
        self.passes, self.caches = passes, caches
        self.name = "padded batches behind a cached prefix" if caches else "padded batches"

    def serves(self, length: int) -> bool:
        return True

    def batches(self, prefix: list[int], items: Sequence[Wanted]) -> Iterator[Batch]:
        cache = self._cache(prefix) if self.caches and prefix else None
        behind = [] if cache is not None else prefix
        for batch in batches_of(len(prefix), items, self.passes.batch_tokens):
            rows = [behind + items[i].suffix for i in batch]
            counts = [len(items[i].targets) for i in batch]
            logits_RV = self._logits(rows, counts, cache)
            targets = [items[i].targets for i in batch]
            yield (
                batch,
                [picked(*pair) for pair in zip(logits_RV.split(counts), targets, strict=True)],
            )

    def _cache(self, prefix: list[int]) -> Any:
        """The KV cache that the model itself makes of the prefix."""
        self.passes.use_attention()
        _, out = self.passes.logits([prefix], [0], [len(prefix) - 1], use_cache=True)
        cache = out.past_key_values
        if cache is None or not hasattr(cache, "batch_repeat_interleave"):
            raise ValueError("its cache cannot be copied for a batch")
        return cache

    def _logits(self, rows: list[list[int]], counts: list[int], cache: Any) -> Tensor:
        """Logits of each row's last `counts[i]` positions, one row's after the other's."""
        width = max(map(len, rows))
        ids_BT = [row + [0] * (width - len(row)) for row in rows]
        numbers = [number for number, count in enumerate(counts) for _ in range(count)]
        places = [
            len(row) - count + n
            for row, count in zip(rows, counts, strict=True)
            for n in range(count)
        ]
        options: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            options = {"past_key_values": copy.deepcopy(cache), "use_cache": True}
            options["past_key_values"].batch_repeat_interleave(len(rows))
        self.passes.use_attention()
        return self.passes.logits(ids_BT, numbers, places, **options)[0]


class Packed:
    """Suffixes without padding behind a prefix that is computed once; see `shared_prefix`.

    Raises one of `NOT_SERVED` if the model's layers are not built as this way needs them.
    """

    name = "shared-prefix attention"

    def __init__(self, passes: ForwardPasses, longest: int):
        self.passes = passes
        self._layers = passes.model.base_model.layers
        passes.use_attention(shared_prefix.NAME)
        with shared_prefix.recorded_masks() as masks, torch.inference_mode():
            passes.model(
                torch.tensor([[1, 2, 3]]), use_cache=False, shared=shared_prefix.PrefixRecorder()
            )
        self.reach = shared_prefix.causal_reach(masks, longest)
        self._last = self._layers[-1]
        self._layers[-1] = shared_prefix.LastRowsLayer(self._last)

    def remove(self) -> None:
        """Give the model its own last layer back."""
        self._layers[-1] = self._last

    def serves(self, length: int) -> bool:
        return length <= self.reach

    def batches(self, prefix: list[int], items: Sequence[Wanted]) -> Iterator[Batch]:
        recorder = shared_prefix.PrefixRecorder()
        if prefix:
            self.passes.use_attention(shared_prefix.NAME)
            self.passes.logits([prefix], [0], [len(prefix) - 1], use_cache=False, shared=recorder)
        for batch in batches_of(0, items, self.passes.batch_tokens):
            suffixes = [items[i].suffix for i in batch]
            counts = [len(items[i].targets) for i in batch]
            logits_RV = self._logits(suffixes, counts, recorder, len(prefix))
            targets = [items[i].targets for i in batch]
            yield (
                batch,
                [picked(*pair) for pair in zip(logits_RV.split(counts), targets, strict=True)],
            )

    @torch.inference_mode()
    def _logits(
        self, suffixes: list[list[int]], counts: list[int], recorder: Any, prefix_length: int
    ) -> Tensor:
        packed = shared_prefix.PackedSuffixes(
            [len(s) for s in suffixes], counts, recorder.prefix, prefix_length
        )
        self.passes.use_attention(shared_prefix.NAME)
        ids_1N = torch.tensor([[token for suffix in suffixes for token in suffix]])
        positions_1N = packed.positions_N[None]
        return self.passes.model(
            ids_1N, position_ids=positions_1N, use_cache=False, shared=packed
        ).logits[0]


class Ladder:
    """Ways in order of speed; each is used up to the length at which it was seen to be right."""

    def __init__(self, ways: Sequence[Way], alone: Alone, dtype: torch.dtype):
        self.ways, self.alone, self.tolerance = list(ways), alone, _TOLERANCE[dtype]
        self._verified: dict[tuple[str, LengthClass], int] = {}
        self._closed: set[tuple[str, LengthClass]] = set()

    def batches(
        self, kind: LengthClass, prefix: list[int], items: Sequence[Wanted]
    ) -> Iterator[Batch]:
        """Compute items of one length class behind a prefix of the same class."""
        length = len(prefix) + max(len(item.suffix) for item in items)
        for way in (
            [] if kind.own else self.ways
        ):  # a row with frequencies of its own shares nothing
            key = (way.name, kind)
            if not way.serves(length) or (
                key in self._closed and length > self._verified.get(key, 0)
            ):
                continue
            batches = way.batches(prefix, items)
            if length > self._verified.get(key, 0):
                first = self._first_batch(batches, key, prefix, items)
                if first is None:
                    self._closed.add(key)
                    continue
                self._verified[key] = length
                yield first
            yield from batches
            return
        yield from self.alone.batches(prefix, items)

    def is_open(self, way: Way, kind: LengthClass) -> bool:
        """False if the way was found wrong for this class at every length that was tried."""
        key = (way.name, kind)
        return key not in self._closed or self._verified.get(key, 0) > 0

    def _first_batch(
        self,
        batches: Iterator[Batch],
        key: tuple[str, LengthClass],
        prefix: list[int],
        items: Sequence[Wanted],
    ) -> Batch | None:
        """The first batch, if its longest row (at first its most padded one, too) equals a plain pass."""
        verified = self._verified.get(key, 0)
        try:
            numbers, found = next(batches)
            places = {0} if verified else {0, len(numbers) - 1}
            gaps = [self._gap(prefix, items[numbers[place]], found[place]) for place in places]
            if max(gaps) <= 1:
                return numbers, found
            problem = f"differs from a plain forward pass by {max(gaps) * self.tolerance:.3g} nats"
        except torch.OutOfMemoryError:
            raise
        except NOT_SERVED as error:
            problem = (
                f"does not serve this model: {(str(error) or type(error).__name__).splitlines()[0]}"
            )
        logger.warning(
            "%s: not used for rows of %d tokens or more (%s)", key[0], verified + 1, problem
        )
        return None

    def _gap(self, prefix: list[int], item: Wanted, found: Tensor) -> float:
        """How far a row is from a plain pass, in tolerances.

        If it is a little beyond, the tolerance is three times what rounding does to the plain pass
        itself: a deep model in float32 must not lose the fast way to that.
        """
        expected = self.alone.row(prefix, item)
        gap = within(found, expected, self.tolerance)
        if 1 < gap <= _MAY_BE_ROUNDING:
            gap /= max(
                1.0, 3 * within(self.alone.row(prefix, item, copies=2), expected, self.tolerance)
            )
        return gap


def within(found: Tensor, expected: Tensor, tolerance: float) -> float:
    """The largest difference in units of the tolerance; infinite where only one of them is finite."""
    size = expected.abs().nan_to_num(0, 0, 0).max() / _LARGE_LOGPROB
    gap = (found - expected).abs().masked_fill(found == expected, 0.0)
    gap = gap.masked_fill(found.isnan() & expected.isnan(), 0.0).nan_to_num(torch.inf, torch.inf)
    return float(gap.max() / (tolerance * max(1.0, float(size))))


def batches_of(prefix_length: int, items: Sequence[Wanted], budget: int) -> Iterator[list[int]]:
    """Item numbers in batches of similar length, the longest first, each within `budget` tokens."""
    batch: list[int] = []
    for number in sorted(range(len(items)), key=lambda i: -len(items[i].suffix)):
        width = len(items[batch[0] if batch else number].suffix)
        if batch and (len(batch) + 1) * (prefix_length + width) > budget:
            yield batch
            batch = []
        batch.append(number)
    yield batch


def picked(logits_TV: Tensor, targets: list[list[int]]) -> Tensor:
    """Float64 log-probabilities of each position's targets, one position's after the other's."""
    logits_TV = logits_TV.double()
    norm_T = logits_TV.logsumexp(-1)
    return torch.cat([logits_TV[row, ids] - norm_T[row] for row, ids in enumerate(targets)]).cpu()
