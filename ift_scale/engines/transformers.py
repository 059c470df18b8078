"""The transformers engine: the reference, and the fastest engine on a CPU.

A prefix that prompts share is computed once. Every row equals a plain forward pass of this row
alone to within 1e-4 nats in float32, for every architecture. Rows are grouped by shared prefix and
by the class of their rotary frequencies (`rope`). Each group uses the fastest strategy verified for
it (`strategies`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from ift_scale.engines import weight_checks
from ift_scale.engines.generation import Generator
from ift_scale.engines.protocol import (
    EngineSpec,
    Sampling,
    ScoreRequest,
    TextRequest,
    ignore,
    resolved_dtype,
)
from ift_scale.engines.rope import LengthClass
from ift_scale.engines.selector import StrategySelector
from ift_scale.engines.strategies import (
    UNSUPPORTED,
    ForwardPasses,
    PaddedBatches,
    ScoredSuffix,
    SharedPrefix,
    SingleRows,
    Strategy,
)
from ift_scale.prompts.tokenizer import common_prefix

logger = logging.getLogger(__name__)
# Prompts without an explicit prefix are grouped if they agree up to here, as chat prompts do.
_GROUPED_BY = 32
_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
# The check at load covers a window if a forward pass of that length takes at most this many
# floating-point operations (2 per parameter and token): a few seconds. Longer rows are checked on
# first use.
_CHECKED_TOKENS, _TOKENS_PAST = 60, 24
_CHECK_OPERATIONS = {"cpu": 1e11, "cuda": 1e14}
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_UNLIMITED = 1 << 20


class RowGroup(NamedTuple):
    """Rows of one length class and their shared prefix. `numbers` indexes the requests."""

    kind: LengthClass
    prefix: list[int]
    items: list[ScoredSuffix]
    numbers: list[int]

    @property
    def longest(self) -> int:
        return len(self.prefix) + max(len(item.suffix) for item in self.items)


def num_shared_tokens(prompts: Sequence[list[int]]) -> int:
    """Returns how many leading tokens all prompts share, leaving each at least one token."""
    return min(len(common_prefix(prompts)), min(map(len, prompts)) - 1)


class TransformersEngine:
    def __init__(self, spec: EngineSpec):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, resolved_dtype(spec.dtype, self.device.type == "cuda"))
        self.batch_tokens = spec.config.batch_tokens or _BATCH_TOKENS[self.device.type]
        self.finished: Callable[[float], None] = ignore
        self._max_model_len = spec.config.max_model_len
        self._load(spec.model_path)

    def _load(self, path: str | Path) -> None:
        weight_checks.check(path)
        # Drop all references to the previous model first: two models may not fit in memory.
        self.model: Any = None
        self._passes: Any = None
        self._selector: Any = None
        self._generator: Any = None
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=self.dtype, local_files_only=True
        )
        self.model = model.to(self.device).eval()
        # The folder's generation config may set a repetition penalty.
        self.model.generation_config = GenerationConfig()
        self._config = self.model.config.get_text_config()
        if getattr(self._config, "attn_logit_softcapping", None) is not None:
            # transformers' SDPA silently ignores the capping (5.19).
            self.model.set_attn_implementation("eager")
        self._passes = ForwardPasses(self.model, self.batch_tokens)
        alone = SingleRows(self._passes)
        packed = self._shared_prefix_strategy()
        padded: list[Strategy] = [
            PaddedBatches(self._passes, caches=True),
            PaddedBatches(self._passes, caches=False),
        ]
        self._selector = StrategySelector(
            [packed, *padded] if packed else padded, alone, self.dtype
        )
        self._generator = Generator(self._passes, alone, self._selector.tolerance)
        self._check_at_load()
        if packed and not self._selector.is_open(packed, self._passes.rope.class_of(1)):
            packed.remove()
            self._selector.strategies.remove(packed)

    def _shared_prefix_strategy(self) -> SharedPrefix | None:
        """Returns the shared-prefix strategy, or None if the device or the layers rule it out."""
        if self.device.type != "cpu":
            return None
        try:
            return SharedPrefix(self._passes, min(self.context_length, _UNLIMITED))
        except UNSUPPORTED as error:
            logger.warning(
                "%s: not used (does not support this model: %s)",
                SharedPrefix.name,
                str(error).splitlines()[0],
            )
            return None

    def _check_at_load(self) -> None:
        """Compares strategies with plain passes on a fixed prompt and past affordable windows."""
        vocabulary = self.model.get_input_embeddings().num_embeddings
        affordable = _CHECK_OPERATIONS[self.device.type] / (2 * self.model.num_parameters())
        limits = {
            n
            for n in {*windows_of(self._config), *self._passes.rope.lengths}
            if n < self.context_length
        }
        windows = [n for n in limits if n + _TOKENS_PAST <= affordable]
        shortest = min([_CHECKED_TOKENS, self.context_length, *windows])
        for length in sorted(
            {shortest, *(min(n + _TOKENS_PAST, self.context_length) for n in windows)}
        ):
            tokens = [(7 * n + 3) % vocabulary for n in range(length)]
            half = length // 2
            rows = [tokens[half:], tokens[: half - 1], tokens[: half // 3 + 1]]
            self._logprobs(
                [tokens[:half]] * 3, [ScoredSuffix(row, [tokens[:20]]) for row in rows], ignore
            )

    @property
    def shares_prefix(self) -> bool:
        """True if rows use shared-prefix attention, as far as the model's masks allow."""
        return any(isinstance(strategy, SharedPrefix) for strategy in self._selector.strategies)

    @property
    def context_length(self) -> int:
        """The maximum number of prompt tokens: the model's limit or `max_model_len`, less one."""
        stated = next(
            (n for name in _LENGTH_FIELDS if (n := getattr(self._config, name, None))), _UNLIMITED
        )
        return min(self._max_model_len or stated, stated) - 1

    def load_weights(self, path: Path) -> None:
        self._load(path)

    def reset_cache(self) -> None:
        """Does nothing: no cache outlives a call."""

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        suffixes = [ScoredSuffix(request.suffix, [request.options]) for request in requests]
        return torch.cat(
            self._logprobs([request.prefix for request in requests], suffixes, self.finished)
        ).numpy()

    def loglikelihood(self, requests: Sequence[TextRequest]) -> np.ndarray:
        suffixes = [
            ScoredSuffix(r.suffix + r.continuation[:-1], [[token] for token in r.continuation])
            for r in requests
        ]
        logprobs_of = self._logprobs(
            [request.prefix for request in requests], suffixes, self.finished
        )
        return np.array([float(logprobs.sum()) for logprobs in logprobs_of])

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> list[list[list[int]]]:
        return self._generator.generate(
            [request.prompt for request in requests], sampling, self.finished
        )

    def _logprobs(
        self,
        prefixes: Sequence[list[int]],
        suffixes: Sequence[ScoredSuffix],
        finished: Callable[[float], None],
    ) -> list[Tensor]:
        """Returns, for each suffix, the log-probabilities of its targets, flat, float64."""
        results: list[Tensor] = [torch.empty(0)] * len(suffixes)
        # Longest rows first: a strategy verified for them is not checked again for shorter ones.
        for group in sorted(self._groups(prefixes, suffixes), key=lambda group: -group.longest):
            for batch, logprobs in self._selector.batches(group.kind, group.prefix, group.items):
                for item, values in zip(batch, logprobs, strict=True):
                    results[group.numbers[item]] = values
                finished(len(batch))
        return results

    def _groups(
        self, prefixes: Sequence[list[int]], suffixes: Sequence[ScoredSuffix]
    ) -> Iterator[RowGroup]:
        """Yields groups of rows that may share forward passes and a cached prefix."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        keys: dict[int, tuple[int, ...]] = {}
        class_of = self._passes.rope.class_of
        for number, (prefix, item) in enumerate(zip(prefixes, suffixes, strict=True)):
            kind = class_of(len(prefix) + len(item.suffix))
            if prefix:
                key = keys.setdefault(id(prefix), (len(prefix), *prefix))
            else:
                key = (0, *item.suffix[: min(_GROUPED_BY, len(item.suffix) - len(item.targets))])
            groups.setdefault((kind, key), []).append(number)
        unshared: dict[LengthClass, list[int]] = {}
        for (kind, _), numbers in groups.items():
            prefix, items = longest_prefix(prefixes[numbers[0]], [suffixes[n] for n in numbers])
            if prefix and class_of(len(prefix)) != kind:
                unshared.setdefault(kind, []).extend(numbers)
            else:
                yield RowGroup(kind, prefix, items, numbers)
        # The class of these prefixes differs from their rows', so a cached prefix would have the
        # wrong rotary frequencies.
        for kind, numbers in unshared.items():
            yield RowGroup(
                kind,
                [],
                [
                    ScoredSuffix(prefixes[n] + suffixes[n].suffix, suffixes[n].targets)
                    for n in numbers
                ],
                numbers,
            )


def longest_prefix(
    prefix: list[int], items: list[ScoredSuffix]
) -> tuple[list[int], list[ScoredSuffix]]:
    """Moves the tokens shared by all suffixes to the prefix, except scored positions."""
    more = (
        num_shared_tokens(
            [item.suffix[: len(item.suffix) - len(item.targets) + 1] for item in items]
        )
        if len(items) > 1
        else 0
    )
    return prefix + items[0].suffix[:more], [
        ScoredSuffix(item.suffix[more:], item.targets) for item in items
    ]


def windows_of(config: Any) -> set[int]:
    """Returns every length in the config that may be an attention window or chunk, in tokens.

    Only the check at load uses them: a field that the architecture ignores costs a longer check.
    """
    names = [
        n
        for n in config.to_dict()
        if ("window" in n or "chunk" in n) and "layer" not in n and "pattern" not in n
    ]
    values = [getattr(config, name) for name in names]
    flat = [n for value in values for n in (value if isinstance(value, list | tuple) else [value])]
    return {n for n in flat if isinstance(n, int) and not isinstance(n, bool) and n > 1}
