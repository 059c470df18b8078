"""Text generation with the transformers engine: padded batches where exact, else single rows.

Batches are padded on the left and masked, as transformers' `generate` expects. This is exact for
most models and for sliding windows, but not if positions or rotary frequencies depend on the batch.
Prompts are therefore grouped by rotary class. What the prompts of a batch begin with alike, such as
a few-shot prefix, is computed once, and its KV cache is copied for every row. Padding then follows
the prefix, where it would use up a sliding window, so this is done only for models whose masks are
known to be plainly causal at the texts' full length (`causal_reach`).

Before a method is used for a kind of prompt that is new (`row_kinds`), a few greedy tokens are
compared with plain forward passes. A row whose rotary frequencies change as it grows is generated
without a KV cache, because cached keys would keep the old frequencies.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from ift_scale.engines.protocol import Sampling, TextRequest
from ift_scale.engines.rope import LengthClass
from ift_scale.engines.row_kinds import LengthBuckets, RowKind
from ift_scale.engines.selector import gap_in_tolerances
from ift_scale.engines.strategies import (
    UNSUPPORTED,
    ForwardPasses,
    ScoredSuffix,
    SingleRows,
    batches_by_length,
    num_shared_tokens,
)

logger = logging.getLogger(__name__)
_TOKENS_COMPARED, _CHOICES_COMPARED = 4, 5


class _Method(NamedTuple):
    name: str
    is_batched: bool
    shares_prefix: bool = False


_METHODS = (
    _Method("left-padded batches after a shared prefix", True, shares_prefix=True),
    _Method("left-padded batches", True),
    _Method("single rows with a KV cache", False),
)
_PLAIN = _Method("single rows without a KV cache", False)


class Generator:
    """Generates text with one model and remembers the lengths verified for each method."""

    def __init__(
        self,
        passes: ForwardPasses,
        alone: SingleRows,
        buckets: LengthBuckets,
        tolerance: float,
        may_batch: bool,
        reach: int,
    ):
        """`reach`: the greatest length at which all masks of the model are plainly causal."""
        self.reach = reach
        self.passes, self.single_rows, self.buckets = passes, alone, buckets
        self.tolerance = tolerance
        self.methods = list(_METHODS) if may_batch else []
        self.verified: dict[tuple[_Method, RowKind], int] = {}
        """The most tokens of a verified text, by method and kind."""
        self._wrong: set[tuple[_Method, RowKind]] = set()
        self._prefix: tuple[list[int], Any] = ([], None)
        """The latest shared prefix and its KV cache."""

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling, finished: Callable[[int], None]
    ) -> list[list[list[int]]]:
        """Returns `sampling.num_samples` lists of new token ids for each prompt."""
        torch.manual_seed(sampling.seed)
        self.passes.use_attention()
        results: list[list[list[int]]] = [[] for _ in requests]
        prompts = [request.prompt for request in requests]
        for lengths, numbers in self._groups(requests, sampling):
            left = numbers
            # A text whose rotary frequencies change as it grows cannot use a KV cache.
            for method in [*(self.methods if lengths is not None else []), _PLAIN]:
                refused: list[int] = []
                for batch in self._batches([prompts[n] for n in left], sampling, method):
                    chosen = [left[i] for i in batch]
                    rows = [prompts[n] for n in chosen]
                    shared = self._num_shared(rows, sampling) if method.shares_prefix else 0
                    if lengths is not None and not self._is_right(
                        method, lengths, rows, sampling, shared
                    ):
                        refused += chosen
                        continue
                    if method is _PLAIN:
                        new = self._without_cache(rows, sampling)
                    else:
                        new = self._new_tokens(rows, sampling, shared)
                    for number, samples in zip(chosen, new, strict=True):
                        results[number] = samples
                    finished(len(batch))
                left = refused
        self._prefix = ([], None)
        return results

    def _groups(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> Iterator[tuple[LengthClass | None, list[int]]]:
        """Yields (rotary class, prompt numbers), one prefix after the other.

        The class is None if it changes in a text.
        """
        class_of = self.passes.rope.class_of
        groups: dict[tuple[LengthClass | None, int], list[int]] = {}
        for number, request in enumerate(requests):
            length = len(request.prefix) + len(request.suffix)
            first = class_of(length)
            # The last new token is never read.
            last = class_of(length + sampling.max_tokens - 1)
            lengths = first if first == last and not first.own else None
            prefix = id(request.prefix) if request.prefix else 0
            groups.setdefault((lengths, prefix), []).append(number)
        for (lengths, _), numbers in groups.items():
            yield lengths, numbers

    def _is_right(
        self,
        method: _Method,
        lengths: LengthClass,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        shared: int,
    ) -> bool:
        """Checks one prompt of every kind that is new, or longer than before, in one batch.

        `shared`: first tokens that come from a copied cache.
        """
        if method is _PLAIN:
            return True
        copies = [prompt for prompt in prompts for _ in range(sampling.num_samples)]
        own = [len(row) - shared for row in copies]
        kinds = self.buckets.kinds(lengths, shared, own, [1] * len(copies))
        keys = [(method, kind) for kind in kinds]
        if method not in self.methods or self._wrong.intersection(keys):
            return False
        totals = {
            key: len(row) + sampling.max_tokens
            for key, row in reversed(list(zip(keys, copies, strict=True)))
        }
        new = {key: total for key, total in totals.items() if total > self.verified.get(key, 0)}
        if not new:
            return True
        # The longest and the shortest row keep the padding.
        chosen = sorted({0, len(keys) - 1, *(keys.index(key) for key in new)})
        problem = self._problem([copies[n] for n in chosen], sampling, shared)
        if problem is None:
            self.verified |= new
            return True
        self._wrong |= new.keys()
        was_right = any(verified is method for verified, _ in self.verified)
        if not was_right:
            self.methods.remove(method)
        where = "" if not was_right else f" like those of {max(new.values())} tokens"
        logger.warning("%s: not used to generate texts%s (%s)", method.name, where, problem)
        return False

    def _problem(self, rows: list[list[int]], sampling: Sampling, shared: int) -> str | None:
        """Returns why a batch of these prompts goes wrong, or None if it does not."""
        steps = min(sampling.max_tokens, _TOKENS_COMPARED)
        try:
            out = self._generate(
                rows,
                shared,
                max_new_tokens=steps,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        except torch.OutOfMemoryError:
            raise
        except UNSUPPORTED as error:
            return f"does not support this model: {(str(error) or repr(error)).splitlines()[0]}"
        logprobs_BSV = torch.stack(out.logits, 1).double().log_softmax(-1).cpu()
        gaps = [
            self._gap(row, new, logprobs_SV)
            for row, new, logprobs_SV in zip(
                rows, out.sequences[:, -steps:].tolist(), logprobs_BSV, strict=True
            )
        ]
        return (
            None
            if max(gaps) <= 1
            else f"differs from plain forward passes by {max(gaps) * self.tolerance:.3g} nats"
        )

    def _gap(self, prompt: list[int], new: list[int], logprobs_SV: Tensor) -> float:
        """Returns the largest difference of the top tokens' log-probabilities, in tolerances."""
        top = logprobs_SV.topk(min(_CHOICES_COMPARED, logprobs_SV.shape[-1]))
        expected = self.single_rows.row([], ScoredSuffix(prompt + new[:-1], top.indices.tolist()))
        return gap_in_tolerances(top.values.flatten(), expected, self.tolerance)

    def _batches(
        self, prompts: Sequence[list[int]], sampling: Sampling, strategy: _Method
    ) -> Iterator[list[int]]:
        budget = self.passes.batch_tokens if strategy.is_batched else 0
        return batches_by_length(
            sampling.max_tokens, [ScoredSuffix(prompt, []) for prompt in prompts], budget
        )

    def _new_tokens(
        self, prompts: list[list[int]], sampling: Sampling, shared: int
    ) -> list[list[list[int]]]:
        choice: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            choice = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
            }
        count = sampling.num_samples
        out_MT = self._generate(
            [prompt for prompt in prompts for _ in range(count)],
            shared,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=sampling.stop,
            pad_token_id=sampling.stop[0],
            **choice,
        )[:, max(map(len, prompts)) :]
        new = [_until(tokens, set(sampling.stop)) for tokens in out_MT.tolist()]
        return [new[n * count : (n + 1) * count] for n in range(len(prompts))]

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], shared: int, **options: Any) -> Any:
        width, device = max(map(len, prompts)), self.passes.model.device
        if shared:
            cache = copy.deepcopy(self._cache(prompts[0][:shared]))  # appended to in place
            cache.batch_repeat_interleave(len(prompts))
            options["past_key_values"] = cache
        # Padding follows the shared prefix, so that every row's cache begins with it.
        pads = [width - len(prompt) for prompt in prompts]
        ids_BT = [p[:shared] + [0] * n + p[shared:] for p, n in zip(prompts, pads, strict=True)]
        mask_BT = [[1] * shared + [0] * n + [1] * (width - shared - n) for n in pads]
        return self.passes.model.generate(
            torch.tensor(ids_BT, device=device),
            attention_mask=torch.tensor(mask_BT, device=device),
            **options,
        )

    def _num_shared(self, prompts: Sequence[list[int]], sampling: Sampling) -> int:
        """Returns how many first tokens of these prompts come from one cache."""
        longest = max(map(len, prompts))
        if longest + sampling.max_tokens > self.reach:
            return 0
        shared, class_of = num_shared_tokens(prompts), self.passes.rope.class_of
        # A prefix of another class would be cached with other rotary frequencies.
        return shared if class_of(shared) == class_of(longest) else 0

    def _cache(self, prefix: list[int]) -> Any:
        """Returns the KV cache of a prefix, computed once as long as it is the same."""
        if self._prefix[0] != prefix:
            _, out = self.passes.logits([prefix], [0], [len(prefix) - 1], use_cache=True)
            if not hasattr(out.past_key_values, "batch_repeat_interleave"):
                raise ValueError("its cache cannot be copied for a batch")
            self._prefix = prefix, out.past_key_values
        return self._prefix[1]

    def _without_cache(self, prompts: list[list[int]], sampling: Sampling) -> list[list[list[int]]]:
        """Generates with one full forward pass per new token."""
        return [
            [self._sample(prompt, sampling) for _ in range(sampling.num_samples)]
            for prompt in prompts
        ]

    def _sample(self, prompt: list[int], sampling: Sampling) -> list[int]:
        new: list[int] = []
        while len(new) < sampling.max_tokens:
            ids = prompt + new
            logits_1V, _ = self.passes.logits(
                [ids], [0], [len(ids) - 1], **self.passes.plain_options
            )
            token = int(_chosen(logits_1V.float(), sampling))
            if token in sampling.stop:
                break
            new.append(token)
        return new


def _chosen(logits_1V: Tensor, sampling: Sampling) -> Tensor:
    """Returns the most probable token, or one sampled as transformers' `generate` does."""
    if sampling.temperature == 0:
        return logits_1V.argmax()
    ids = torch.empty(1, 0, dtype=torch.long, device=logits_1V.device)
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(sampling.temperature), TopPLogitsWarper(sampling.top_p)]
    )
    return torch.multinomial(warpers(ids, logits_1V).softmax(-1), 1)


def _until(tokens: list[int], stop: set[int]) -> list[int]:
    return tokens[: next((n for n, token in enumerate(tokens) if token in stop), len(tokens))]
