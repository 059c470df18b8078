"""The transformers engine: the reference, and the fastest engine on a CPU.

A prefix that prompts share is computed once. Every row equals a plain forward pass of this row
alone to within 1e-4 nats in float32, for every architecture. Rows are grouped by shared prefix and
by the class of their rotary frequencies (`rope`). Each batch uses the fastest strategy verified for
its kinds of rows (`strategies`, `selector`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from ift_scale.engines import model_class, weight_checks
from ift_scale.engines.generation import Generator
from ift_scale.engines.hidden_states import StatePasses, StateRows, state_strategies
from ift_scale.engines.protocol import (
    EngineSpec,
    Sampling,
    ScoreRequest,
    TextRequest,
    ignore,
    resolved_dtype,
)
from ift_scale.engines.rope import LengthClass
from ift_scale.engines.row_kinds import LengthBuckets, selects_tokens
from ift_scale.engines.selector import TOLERANCE, StrategySelector, gap_in_tolerances
from ift_scale.engines.strategies import (
    UNSUPPORTED,
    ForwardPasses,
    PaddedBatches,
    ScoredSuffix,
    SharedPrefix,
    SingleRows,
    Strategy,
    num_shared_tokens,
)
from ift_scale.errors import DataError, Place
from ift_scale.models import config_class
from ift_scale.models.config_file import CONTEXT_FIELDS

logger = logging.getLogger(__name__)
_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
_UNLIMITED = 1 << 20
_REPEATED_TOKENS = 40
# A later token may change rounding, which is far below this many tolerances.
_CAUSAL = 10


class RowGroup(NamedTuple):
    """Rows of one length class and their shared prefix. `numbers` indexes the requests."""

    kind: LengthClass
    prefix: list[int]
    items: list[ScoredSuffix]
    numbers: list[int]

    @property
    def longest(self) -> int:
        return len(self.prefix) + max(len(item.suffix) for item in self.items)


class TransformersEngine:
    def __init__(self, spec: EngineSpec):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, resolved_dtype(spec.dtype, self.device.type == "cuda"))
        self.batch_tokens = spec.config.batch_tokens or _BATCH_TOKENS[self.device.type]
        self.finished: Callable[[float], None] = ignore
        self._max_model_len = spec.config.max_model_len
        self._trusted = spec.trust_remote_code
        self._load(spec.model_path)

    def _load(self, path: str | Path) -> None:
        weight_checks.check(path, self._trusted)
        # Drop all references to the previous model first: two models may not fit in memory.
        self.model: Any = None
        self._passes: Any = None
        self._selector: Any = None
        self._generator: Any = None
        self._states: Any = None
        kind, settings = config_class.class_and_config(Path(path), self._trusted)
        model = model_class.load(kind, Path(path), settings, self.dtype)
        self.model = model.to(self.device).eval()
        # The folder's generation config may set a repetition penalty.
        self.model.generation_config = GenerationConfig()
        self._config = self.model.config.get_text_config()
        if getattr(self._config, "attn_logit_softcapping", None) is not None:
            # transformers' SDPA silently ignores the capping (5.19).
            self.model.set_attn_implementation("eager")
        self._passes = ForwardPasses(self.model, self.batch_tokens)
        alone = SingleRows(self._passes)
        self._check_reference(alone, path)
        strategies = self._strategies()
        buckets = LengthBuckets(self.model.config.to_dict())
        self._selector = StrategySelector(strategies, alone, buckets, self.dtype)
        self._generator = Generator(
            self._passes,
            alone,
            buckets,
            self._selector.tolerance,
            may_batch=bool(strategies),
            reach=max((s.reach for s in strategies if isinstance(s, SharedPrefix)), default=0),
        )

    def _check_reference(self, alone: SingleRows, path: str | Path) -> None:
        """Raises DataError if plain passes are random, or if tokens attend to later ones.

        Reformer hashes at random. BERT without `is_decoder` and XLNet are bidirectional.
        """
        name, place = type(self.model).__name__, Place(Path(path))
        ids = [n % 7 + 1 for n in range(min(_REPEATED_TOKENS, self.context_length))]
        scored: list[list[int]] = [[1]] * len(ids)
        first, second = (alone.row([], ScoredSuffix(ids, scored)) for _ in range(2))
        if gap_in_tolerances(second, first, TOLERANCE[self.dtype]) > 1:
            problem = f"{name} is random: two passes of one prompt differ by"
            problem += f" {float((second - first).abs().max()):.3g} nats"
            raise DataError(place, problem, "Use a model whose forward pass is exact")
        other = alone.row([], ScoredSuffix([*ids[:-1], ids[-1] + 1], scored))
        if gap_in_tolerances(other[:-1], first[:-1], _CAUSAL * TOLERANCE[self.dtype]) > 1:
            problem = f"{name} is no causal language model: its tokens attend to later ones"
            remedy = "Give a causal language model, or set is_decoder to true in config.json if the"
            remedy += " model was trained as one"
            raise DataError(place, problem, remedy)

    def _strategies(self) -> list[Strategy]:
        """Returns the strategies that the model may use, fastest first."""
        if selects_tokens(self.model, self.context_length, **self._passes.plain_options):
            logger.warning(
                "every row takes a forward pass of its own: this model attends to selected tokens,"
                " and batches change the selection"
            )
            return []
        packed = self._shared_prefix_strategy()
        padded = [PaddedBatches(self._passes, caches) for caches in (True, False)]
        return [packed, *padded] if packed else [*padded]

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

    @property
    def shares_prefix(self) -> bool:
        """True if rows use shared-prefix attention, as far as the model's masks allow."""
        return any(isinstance(strategy, SharedPrefix) for strategy in self._selector.strategies)

    @property
    def context_length(self) -> int:
        """The maximum number of prompt tokens: the model's limit or `max_model_len`, less one."""
        values = (getattr(self._config, name, None) for name in CONTEXT_FIELDS)
        # XLNet has -1 for no limit.
        stated = next((n for n in values if n and n > 0), _UNLIMITED)
        # RoBERTa and its kin number positions from the padding id on.
        stated -= max((n + 1 for n in self._padding_positions()), default=0)
        return min(self._max_model_len or stated, stated) - 1

    def _padding_positions(self) -> Iterator[int]:
        """Yields the padding index of each table of learned positions that has one."""
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
                yield from () if module.padding_idx is None else (module.padding_idx,)

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
        return np.array([float(logprobs.sum()) for logprobs in self._continuations(requests)])

    def token_logprobs(self, requests: Sequence[TextRequest]) -> list[np.ndarray]:
        return [logprobs.numpy() for logprobs in self._continuations(requests)]

    def _continuations(self, requests: Sequence[TextRequest]) -> list[Tensor]:
        """Returns the log-probabilities of the tokens of each continuation, float64."""
        suffixes = [
            ScoredSuffix(r.suffix + r.continuation[:-1], [[token] for token in r.continuation])
            for r in requests
        ]
        return self._logprobs([request.prefix for request in requests], suffixes, self.finished)

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> list[list[list[int]]]:
        return self._generator.generate(requests, sampling, self.finished)

    def hidden_states(self, requests: Sequence[ScoreRequest]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the states at each prompt's last token, and the options of the logit lens.

        Float32 of shape (num_requests, num_layers + 1, width) and int8 of shape (num_requests,
        num_layers + 1); see `hidden_states`.
        """
        if self._states is None:
            passes, used = StatePasses(self._passes), self._selector
            strategies = state_strategies(used.strategies, passes)
            self._states = StrategySelector(strategies, StateRows(passes), used.buckets, self.dtype)
        passes = self._states.single_rows.passes
        suffixes = [ScoredSuffix(request.suffix, [request.options]) for request in requests]
        flat = self._logprobs(
            [request.prefix for request in requests], suffixes, self.finished, self._states
        )
        states_RLH = torch.stack(flat).unflatten(1, (passes.num_layers, passes.width))
        lens_RL = passes.lens(states_RLH.to(self.device), [r.options for r in requests])
        return states_RLH.numpy(), lens_RL.to(torch.int8).numpy()

    def _logprobs(
        self,
        prefixes: Sequence[list[int]],
        suffixes: Sequence[ScoredSuffix],
        finished: Callable[[float], None],
        selector: StrategySelector | None = None,
    ) -> list[Tensor]:
        """Returns, for each suffix, the log-probabilities of its targets, flat, float64.

        With a `selector` of other strategies, returns what these compute for each suffix.
        """
        selector = selector or self._selector
        results: list[Tensor] = [torch.empty(0)] * len(suffixes)
        # Longest rows first: a strategy is checked again for rows longer than all before.
        for group in sorted(self._groups(prefixes, suffixes), key=lambda group: -group.longest):
            for batch, logprobs in selector.batches(group.kind, group.prefix, group.items):
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
            # Prompts without a prefix are one group: chat prompts share the template's beginning.
            key = keys.setdefault(id(prefix), tuple(prefix)) if prefix else ()
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
