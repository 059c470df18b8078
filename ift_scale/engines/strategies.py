"""Strategies to compute log-probabilities of many rows, from the fastest to one pass per row.

- `SharedPrefix` (CPU, Llama-like layers): suffixes without padding after a prefix that is computed
  once (`shared_prefix`), up to the length at which the model's masks stop being plainly causal.
- `PaddedBatches`: rows padded on the right, after copies of the prefix's KV cache or whole. Every
  token has the same index and position as in a single row's pass, and padding follows every scored
  position. Causal masks, sliding windows, chunks, local attention, ALiBi and learned positions
  therefore need no special case.
- `SingleRows`: one row per forward pass. This is the reference.

`selector.StrategySelector` decides which one computes a group of rows.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ift_scale.engines import shared_prefix
from ift_scale.engines.rope import RopeLimits
from ift_scale.prompts.tokenizer import common_prefix

# A strategy raises one of these for a model that it does not support.
UNSUPPORTED = (TypeError, RuntimeError, AttributeError, ValueError, LookupError, AssertionError)


class ScoredSuffix(NamedTuple):
    """A suffix, and the ids to score after each of its last `len(targets)` positions."""

    suffix: list[int]
    targets: list[list[int]]


class Strategy(Protocol):
    name: str
    passes: "ForwardPasses"

    def serves(self, length: int) -> bool:
        """True if this strategy can compute rows of `length` tokens."""

    def repeated(self, prefix: list[int]) -> int:
        """Returns how many of the prefix's tokens every row of a batch has in memory."""

    def prepare(self, prefix: list[int]) -> Any:
        """Computes what all batches after this prefix share, once."""

    def logprobs(
        self, prefix: list[int], prepared: Any, items: Sequence[ScoredSuffix]
    ) -> list[Tensor]:
        """Computes one batch, longest item first.

        Returns the flat float64 log-probabilities of each item's targets.
        """


class ForwardPasses:
    """Runs a model's forward passes and returns the logits of chosen positions."""

    def __init__(self, model: Any, batch_tokens: int):
        self.model, self.batch_tokens = model, batch_tokens
        self.rope = RopeLimits(model)
        # Reset also between the passes of `generate`: transformers 5.19 fails in the second pass
        # past LongRoPE's limit if each kind of layer has its own rotary parameters.
        rope = self.rope  # a hook that referenced `self` would keep the model alive
        model.register_forward_pre_hook(lambda *_: rope.reset())
        self._plain_attention = model.config._attn_implementation
        self.plain_options = self._plain_options()

    def _plain_options(self) -> dict[str, Any]:
        """Returns the arguments of the model's plain forward pass: none, where that works.

        Hybrid models without an attention layer fail with a cache, which is their default (5.19).
        """
        try:
            self.logits([[1, 2, 3]], [0], [2])
        except UNSUPPORTED:
            return {"use_cache": False}
        return {}

    def use_attention(self, name: str | None = None) -> None:
        """Sets the attention function; None restores the model's own."""
        name = name or self._plain_attention
        if self.model.config._attn_implementation != name:
            self.model.set_attn_implementation(name)

    @torch.inference_mode()
    def logits(
        self, ids_BT: list[list[int]], rows: list[int], positions: list[int], **options: Any
    ) -> tuple[Tensor, Any]:
        """Returns the logits at (rows[i], positions[i]) and the model's output.

        Shape (num_scored, vocabulary).
        """
        ids = torch.tensor(ids_BT, device=self.model.device)
        rows_R, positions_R = torch.tensor(rows), torch.tensor(positions)

        def select(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            # Only the scored rows pass the LM head: full logits would be the largest array of all.
            hidden, *others = args
            return (
                (hidden[rows_R, positions_R][None], *others)
                if hidden.dim() == 3 and hidden.shape[:2] == ids.shape
                else None
            )

        head = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(select) if head is not None else None
        try:
            out = self.model(ids, **options)
        finally:
            if handle is not None:
                handle.remove()
        logits = out.logits
        return logits[0] if logits.shape[:2] == (1, len(rows)) else logits[rows_R, positions_R], out


class SingleRows:
    """One row per forward pass, nothing shared."""

    name = "single rows"

    def __init__(self, passes: ForwardPasses):
        self.passes = passes

    def row(self, prefix: list[int], item: ScoredSuffix, copies: int = 1) -> Tensor:
        """Returns the log-probabilities of one row. `copies` in a batch change only rounding."""
        ids, count = prefix + item.suffix, len(item.targets)
        self.passes.use_attention()
        logits_TV, _ = self.passes.logits(
            [ids] * copies,
            [0] * count,
            list(range(len(ids) - count, len(ids))),
            **self.passes.plain_options,
        )
        return target_logprobs(logits_TV, item.targets)


class PaddedBatches:
    """Right-padded batches, after copies of the prefix's KV cache or (`caches` False) whole."""

    def __init__(self, passes: ForwardPasses, caches: bool):
        self.passes, self.caches = passes, caches
        self.name = "padded batches with a cached prefix" if caches else "padded batches"

    def serves(self, length: int) -> bool:
        return True

    def repeated(self, prefix: list[int]) -> int:
        return len(prefix)

    def prepare(self, prefix: list[int]) -> Any:
        """Returns the KV cache that the model itself computes for the prefix, or None."""
        if not self.caches or not prefix:
            return None
        self.passes.use_attention()
        _, out = self.passes.logits([prefix], [0], [len(prefix) - 1], use_cache=True)
        cache = out.past_key_values
        if cache is None or not hasattr(cache, "batch_repeat_interleave"):
            raise ValueError("its cache cannot be copied for a batch")
        return cache

    def logprobs(
        self, prefix: list[int], prepared: Any, items: Sequence[ScoredSuffix]
    ) -> list[Tensor]:
        before = [] if prepared is not None else prefix
        counts = [len(item.targets) for item in items]
        logits_RV = self._logits([before + item.suffix for item in items], counts, prepared)
        return split_logprobs(logits_RV, items)

    def _logits(self, rows: list[list[int]], counts: list[int], cache: Any) -> Tensor:
        """Returns the logits of each row's last `counts[i]` positions, row after row."""
        width = max(map(len, rows))
        ids_BT = [row + [0] * (width - len(row)) for row in rows]
        numbers = [number for number, count in enumerate(counts) for _ in range(count)]
        positions = [
            len(row) - count + n
            for row, count in zip(rows, counts, strict=True)
            for n in range(count)
        ]
        options: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            # The model appends to the cache in place, so each batch needs its own copy.
            options = {"past_key_values": copy.deepcopy(cache), "use_cache": True}
            options["past_key_values"].batch_repeat_interleave(len(rows))
        self.passes.use_attention()
        return self.passes.logits(ids_BT, numbers, positions, **options)[0]


class SharedPrefix:
    """Suffixes without padding after a prefix that is computed once; see `shared_prefix`.

    Raises one of `UNSUPPORTED` if the model's layers are not built as this strategy requires.
    """

    name = "shared-prefix attention"

    def __init__(self, passes: ForwardPasses, longest: int):
        self.passes = passes
        self._layers = passes.model.base_model.layers
        passes.use_attention(shared_prefix.NAME)
        # One tiny pass records the mask functions, which show where masks stop being plain causal.
        with shared_prefix.recorded_masks() as masks, torch.inference_mode():
            passes.model(
                torch.tensor([[1, 2, 3]]), use_cache=False, shared=shared_prefix.PrefixRecorder()
            )
        self.reach = shared_prefix.causal_reach(masks, longest)

    def serves(self, length: int) -> bool:
        return length <= self.reach

    def repeated(self, prefix: list[int]) -> int:
        return 0

    def prepare(self, prefix: list[int]) -> shared_prefix.PrefixRecorder:
        """Runs one pass over the prefix that stores its keys and values."""
        recorder = shared_prefix.PrefixRecorder()
        if prefix:
            self.passes.use_attention(shared_prefix.NAME)
            self.passes.logits([prefix], [0], [len(prefix) - 1], use_cache=False, shared=recorder)
        return recorder

    @torch.inference_mode()
    def logprobs(
        self, prefix: list[int], prepared: Any, items: Sequence[ScoredSuffix]
    ) -> list[Tensor]:
        packed = shared_prefix.PackedSuffixes(
            [item.suffix for item in items],
            [len(item.targets) for item in items],
            prepared.prefix,
            len(prefix),
        )
        self.passes.use_attention(shared_prefix.NAME)
        ids_1N, positions_1N = torch.tensor([packed.ids_N]), packed.positions_N[None]
        with shared_prefix.last_layer_on_scored_rows(self._layers):
            out = self.passes.model(
                ids_1N, position_ids=positions_1N, use_cache=False, shared=packed
            )
        return split_logprobs(out.logits[0], items)


def num_shared_tokens(prompts: Sequence[list[int]]) -> int:
    """Returns how many leading tokens all prompts share, leaving each at least one token."""
    return min(len(common_prefix(prompts)), min(map(len, prompts)) - 1)


def batches_by_length(
    prefix_length: int, items: Sequence[ScoredSuffix], budget: int
) -> Iterator[list[int]]:
    """Yields item numbers in batches of similar length, longest first, within `budget` tokens."""
    batch: list[int] = []
    for number in sorted(range(len(items)), key=lambda i: -len(items[i].suffix)):
        width = len(items[batch[0] if batch else number].suffix)
        if batch and (len(batch) + 1) * (prefix_length + width) > budget:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def split_logprobs(logits_RV: Tensor, items: Sequence[ScoredSuffix]) -> list[Tensor]:
    """Returns the log-probabilities of each item's targets from the logits of all scored rows."""
    parts = logits_RV.split([len(item.targets) for item in items])
    return [target_logprobs(part, item.targets) for part, item in zip(parts, items, strict=True)]


def target_logprobs(logits_TV: Tensor, targets: list[list[int]]) -> Tensor:
    """Returns float64 log-probabilities of each position's targets, position after position."""
    logits_TV = logits_TV.double()
    norm_T = logits_TV.logsumexp(-1)
    return torch.cat([logits_TV[row, ids] - norm_T[row] for row, ids in enumerate(targets)]).cpu()
