"""Text generation with the transformers engine: padded batches where exact, else single rows.

Batches are padded on the left and masked, as transformers' `generate` expects. This is exact for
most models and for sliding windows, but not if positions or rotary frequencies depend on the batch.
Prompts are therefore grouped by rotary class. Before a method is used for longer prompts or more
padding than before, a few greedy tokens are compared with plain forward passes. A row whose rotary
frequencies change as it grows is generated without a KV cache, because cached keys would keep the
old frequencies.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from ift_scale.engines.protocol import Sampling
from ift_scale.engines.rope import LengthClass
from ift_scale.engines.selector import gap_in_tolerances
from ift_scale.engines.strategies import (
    UNSUPPORTED,
    ForwardPasses,
    ScoredSuffix,
    SingleRows,
    batches_by_length,
)

logger = logging.getLogger(__name__)
_TOKENS_COMPARED, _CHOICES_COMPARED = 4, 5


class _Method(NamedTuple):
    name: str
    is_batched: bool


_METHODS = (_Method("left-padded batches", True), _Method("single rows with a KV cache", False))
_PLAIN = _Method("single rows without a KV cache", False)


class Generator:
    """Generates text with one model and remembers the lengths verified for each method."""

    def __init__(self, passes: ForwardPasses, alone: SingleRows, tolerance: float):
        self.passes, self.single_rows, self.tolerance = passes, alone, tolerance
        self._verified: dict[tuple[_Method, LengthClass], tuple[int, int]] = {}
        self._closed: set[tuple[_Method, LengthClass]] = set()

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, finished: Callable[[int], None]
    ) -> list[list[list[int]]]:
        """Returns `sampling.num_samples` lists of new token ids for each prompt."""
        torch.manual_seed(sampling.seed)
        self.passes.use_attention()
        results: list[list[list[int]]] = [[] for _ in prompts]
        for numbers, strategy in self._plan(prompts, sampling):
            for batch in self._batches([prompts[n] for n in numbers], sampling, strategy):
                chosen = [numbers[i] for i in batch]
                new_tokens = self._without_cache if strategy is _PLAIN else self._new_tokens
                tokens = new_tokens([prompts[n] for n in chosen], sampling)
                for number, samples in zip(chosen, tokens, strict=True):
                    results[number] = samples
                finished(len(batch))
        return results

    def _plan(
        self, prompts: Sequence[list[int]], sampling: Sampling
    ) -> Iterator[tuple[list[int], _Method]]:
        """Yields (prompt numbers, method to use), one pair per rotary class."""
        class_of = self.passes.rope.class_of
        groups: dict[tuple[LengthClass, LengthClass], list[int]] = {}
        for number, prompt in enumerate(prompts):
            longest = len(prompt) + sampling.max_tokens - 1  # the last new token is never read
            groups.setdefault((class_of(len(prompt)), class_of(longest)), []).append(number)
        for (first, last), numbers in groups.items():
            changes = first != last or first.own > 0
            if changes:
                yield numbers, _PLAIN
            else:
                yield (
                    numbers,
                    self._verified_method(first, [prompts[n] for n in numbers], sampling),
                )

    def _verified_method(
        self, kind: LengthClass, prompts: list[list[int]], sampling: Sampling
    ) -> _Method:
        longest = max(map(len, prompts))
        length = longest + sampling.max_tokens
        for strategy in _METHODS:
            key, padding = (
                (strategy, kind),
                longest - min(map(len, prompts)) if strategy.is_batched else 0,
            )
            right_length, right_padding = self._verified.get(key, (0, 0))
            if length <= right_length and padding <= right_padding:
                return strategy
            if key not in self._closed:
                problem = self._problem(strategy, prompts, sampling)
                if problem is None:
                    self._verified[key] = max(length, right_length), max(padding, right_padding)
                    return strategy
                self._closed.add(key)
                beyond = f"beyond {right_length} tokens or {right_padding} of padding"
                logger.warning(
                    "%s: not used to generate texts %s (%s)", strategy.name, beyond, problem
                )
        return _PLAIN

    def _problem(
        self, strategy: _Method, prompts: list[list[int]], sampling: Sampling
    ) -> str | None:
        """Returns why a method is unusable for these prompts, or None if it is usable.

        Compares the longest prompt and, in the same batch, the shortest and most padded one.
        """
        ordered = sorted(prompts, key=len)
        rows = (
            [ordered[-1], ordered[0]] if strategy.is_batched and len(prompts) > 1 else ordered[-1:]
        )
        steps = min(sampling.max_tokens, _TOKENS_COMPARED)
        try:
            out = self._generate(
                rows,
                max_new_tokens=steps,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        except torch.OutOfMemoryError:
            raise
        except UNSUPPORTED as error:
            return f"does not support this model: {error}"
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

    def _new_tokens(self, prompts: list[list[int]], sampling: Sampling) -> list[list[list[int]]]:
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
            prompts,
            max_new_tokens=sampling.max_tokens,
            num_return_sequences=count,
            eos_token_id=sampling.stop,
            pad_token_id=sampling.stop[0],
            **choice,
        )[:, max(map(len, prompts)) :]
        new = [_until(tokens, set(sampling.stop)) for tokens in out_MT.tolist()]
        return [new[n * count : (n + 1) * count] for n in range(len(prompts))]

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], **options: Any) -> Any:
        width, device = max(map(len, prompts)), self.passes.model.device
        return self.passes.model.generate(
            torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device),
            attention_mask=torch.tensor(
                [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device
            ),
            **options,
        )

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
            logits_1V, _ = self.passes.logits([ids], [0], [len(ids) - 1])
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
