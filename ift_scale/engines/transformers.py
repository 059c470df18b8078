"""The transformers engine: the reference, and the fastest on a CPU. A prefix that prompts share is computed once.

Every row is computed as a plain forward pass of this row alone would, to within 1e-4 nats in float32,
whatever the architecture. Rows are grouped by the prefix that they share and by the class of their
rotary frequencies (`rope`); each group takes the fastest way that is right for it (`ways`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from ift_scale.engines import weights
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
from ift_scale.engines.ways import (
    NOT_SERVED,
    Alone,
    Batched,
    ForwardPasses,
    Ladder,
    Packed,
    Wanted,
    Way,
)
from ift_scale.prompts.tokenizer import common_prefix

logger = logging.getLogger(__name__)
# Prompts without a stated prefix share one when they are the same up to here, as those of a chat template are.
_GROUPED_BY = 32
_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
# The check at load reaches past a window if a pass of that length takes at most so many floating-point
# operations (2 for each parameter and token): a few seconds. Longer rows are checked when they come.
_CHECKED_TOKENS, _TOKENS_PAST = 60, 24
_CHECK_OPERATIONS = {"cpu": 1e11, "cuda": 1e14}
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_UNLIMITED = 1 << 20


class Group(NamedTuple):
    """Rows of one length class and the prefix that they share. `numbers`: which requests they are."""

    kind: LengthClass
    prefix: list[int]
    items: list[Wanted]
    numbers: list[int]

    @property
    def longest(self) -> int:
        return len(self.prefix) + max(len(item.suffix) for item in self.items)


def num_shared(prompts: Sequence[list[int]]) -> int:
    """How many leading tokens all prompts share, at least one being left to each."""
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
        weights.check(path)
        # Nothing may keep the model before: two at once may not fit.
        self.model: Any = None
        self._passes: Any = None
        self._ladder: Any = None
        self._generator: Any = None
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=self.dtype, local_files_only=True
        )
        self.model = model.to(self.device).eval()
        self.model.generation_config = (
            GenerationConfig()
        )  # the folder's may hold a repetition penalty
        self._config = self.model.config.get_text_config()
        if getattr(self._config, "attn_logit_softcapping", None) is not None:
            self.model.set_attn_implementation(
                "eager"
            )  # transformers' SDPA leaves the capping out, silently (5.19)
        self._passes = ForwardPasses(self.model, self.batch_tokens)
        alone = Alone(self._passes)
        packed = self._packed_way()
        padded: list[Way] = [
            Batched(self._passes, caches=True),
            Batched(self._passes, caches=False),
        ]
        self._ladder = Ladder([packed, *padded] if packed else padded, alone, self.dtype)
        self._generator = Generator(self._passes, alone, self._ladder.tolerance)
        self._check_at_load()
        if packed and not self._ladder.is_open(packed, self._passes.rope.class_of(1)):
            packed.remove()
            self._ladder.ways.remove(packed)

    def _packed_way(self) -> Packed | None:
        """The shared way if this is a CPU and the model's layers are built as it needs them."""
        if self.device.type != "cpu":
            return None
        try:
            return Packed(self._passes, min(self.context_length, _UNLIMITED))
        except NOT_SERVED as error:
            logger.warning(
                "%s: not used (does not serve this model: %s)",
                Packed.name,
                str(error).splitlines()[0],
            )
            return None

    def _check_at_load(self) -> None:
        """Compare ways with plain passes on a fixed prompt, and again past each window that is affordable."""
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
                [tokens[:half]] * 3, [Wanted(row, [tokens[:20]]) for row in rows], ignore
            )

    @property
    def shares_prefix(self) -> bool:
        """True if rows go through shared-prefix attention, as far as the model's masks allow it."""
        return any(isinstance(way, Packed) for way in self._ladder.ways)

    @property
    def context_length(self) -> int:
        stated = next(
            (n for name in _LENGTH_FIELDS if (n := getattr(self._config, name, None))), _UNLIMITED
        )
        return min(self._max_model_len or stated, stated) - 1

    def load_weights(self, path: Path) -> None:
        self._load(path)

    def reset_cache(self) -> None:
        """Nothing outlives a call."""

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        wanted = [Wanted(request.suffix, [request.options]) for request in requests]
        return torch.cat(
            self._logprobs([request.prefix for request in requests], wanted, self.finished)
        ).numpy()

    def loglikelihood(self, requests: Sequence[TextRequest]) -> np.ndarray:
        wanted = [
            Wanted(r.suffix + r.continuation[:-1], [[token] for token in r.continuation])
            for r in requests
        ]
        found = self._logprobs([request.prefix for request in requests], wanted, self.finished)
        return np.array([float(logprobs.sum()) for logprobs in found])

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> list[list[list[int]]]:
        return self._generator.generate(
            [request.prompt for request in requests], sampling, self.finished
        )

    def _logprobs(
        self,
        prefixes: Sequence[list[int]],
        wanted: Sequence[Wanted],
        finished: Callable[[float], None],
    ) -> list[Tensor]:
        """For each suffix the log-probabilities of its targets, one behind the other, float64."""
        found: list[Tensor] = [torch.empty(0)] * len(wanted)
        # The longest rows first: a way that is right for them is not checked again for shorter ones.
        for group in sorted(self._groups(prefixes, wanted), key=lambda group: -group.longest):
            for batch, logprobs in self._ladder.batches(group.kind, group.prefix, group.items):
                for place, values in zip(batch, logprobs, strict=True):
                    found[group.numbers[place]] = values
                finished(len(batch))
        return found

    def _groups(self, prefixes: Sequence[list[int]], wanted: Sequence[Wanted]) -> Iterator[Group]:
        """Rows that may share forward passes and a cached prefix, by their beginnings and length classes."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        keys: dict[int, tuple[int, ...]] = {}
        class_of = self._passes.rope.class_of
        for number, (prefix, item) in enumerate(zip(prefixes, wanted, strict=True)):
            kind = class_of(len(prefix) + len(item.suffix))
            if prefix:
                key = keys.setdefault(id(prefix), (len(prefix), *prefix))
            else:
                key = (0, *item.suffix[: min(_GROUPED_BY, len(item.suffix) - len(item.targets))])
            groups.setdefault((kind, key), []).append(number)
        unshared: dict[LengthClass, list[int]] = {}
        for (kind, _), numbers in groups.items():
            prefix, items = longest_prefix(prefixes[numbers[0]], [wanted[n] for n in numbers])
            if prefix and class_of(len(prefix)) != kind:
                unshared.setdefault(kind, []).extend(numbers)
            else:
                yield Group(kind, prefix, items, numbers)
        for (
            kind,
            numbers,
        ) in unshared.items():  # the prefix alone would get other frequencies than these rows
            yield Group(
                kind,
                [],
                [Wanted(prefixes[n] + wanted[n].suffix, wanted[n].targets) for n in numbers],
                numbers,
            )


def longest_prefix(prefix: list[int], items: list[Wanted]) -> tuple[list[int], list[Wanted]]:
    """Moves what the suffixes still share over to the prefix, all wanted positions being left to them."""
    more = (
        num_shared([item.suffix[: len(item.suffix) - len(item.targets) + 1] for item in items])
        if len(items) > 1
        else 0
    )
    return prefix + items[0].suffix[:more], [
        Wanted(item.suffix[more:], item.targets) for item in items
    ]


def windows_of(config: Any) -> set[int]:
    """Every length in the configuration that may be a window or a chunk of attention, in tokens.

    Only the check at load goes by it: a field that the architecture ignores costs a longer check.
    """
    names = [
        n
        for n in config.to_dict()
        if ("window" in n or "chunk" in n) and "layer" not in n and "pattern" not in n
    ]
    values = [getattr(config, name) for name in names]
    flat = [n for value in values for n in (value if isinstance(value, list | tuple) else [value])]
    return {n for n in flat if isinstance(n, int) and not isinstance(n, bool) and n > 1}
