"""Text generation with the transformers engine: padded batches where they are exact, else row by row.

A batch is padded on the left, with masks, as transformers' `generate` expects it. That is exact for
most models and for sliding windows, but not where positions or rotary frequencies go by the batch.
So prompts are grouped by their rotary class, and before a way is used for longer prompts or for more
padding than before, a few greedy tokens are compared with plain forward passes. A row whose frequencies change while it
grows is generated without a KV cache: its old keys would have the old frequencies.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from ift_scale.engines.protocol import Sampling
from ift_scale.engines.rope import LengthClass
from ift_scale.engines.ways import NOT_SERVED, Alone, ForwardPasses, Wanted, batches_of, within

logger = logging.getLogger(__name__)
_TOKENS_COMPARED, _CHOICES_COMPARED = 4, 5


class _Way(NamedTuple):
    name: str
    is_batched: bool


_WAYS = (_Way("left-padded batches", True), _Way("single rows with a KV cache", False))
_PLAIN = _Way("single rows without a KV cache", False)


class Generator:
    """Generates with one model; remembers up to which length and padding each way was seen to be right."""

    def __init__(self, passes: ForwardPasses, alone: Alone, tolerance: float):
        self.passes, self.alone, self.tolerance = passes, alone, tolerance
        self._verified: dict[tuple[_Way, LengthClass], tuple[int, int]] = {}
        self._closed: set[tuple[_Way, LengthClass]] = set()

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, finished: Callable[[int], None]
    ) -> list[list[list[int]]]:
        """For each prompt `sampling.num_samples` lists of new tokens."""
        torch.manual_seed(sampling.seed)
        self.passes.use_attention()
        found: list[list[list[int]]] = [[] for _ in prompts]
        for numbers, way in self._plan(prompts, sampling):
            for batch in self._batches([prompts[n] for n in numbers], sampling, way):
                chosen = [numbers[i] for i in batch]
                new_tokens = self._plainly if way is _PLAIN else self._new_tokens
                tokens = new_tokens([prompts[n] for n in chosen], sampling)
                for number, samples in zip(chosen, tokens, strict=True):
                    found[number] = samples
                finished(len(batch))
        return found

    def _plan(
        self, prompts: Sequence[list[int]], sampling: Sampling
    ) -> Iterator[tuple[list[int], _Way]]:
        """(prompt numbers, the way to take), class by class."""
        class_of = self.passes.rope.class_of
        groups: dict[tuple[LengthClass, LengthClass], list[int]] = {}
        for number, prompt in enumerate(prompts):
            longest = len(prompt) + sampling.max_tokens - 1  # the last new token is not read again
            groups.setdefault((class_of(len(prompt)), class_of(longest)), []).append(number)
        for (first, last), numbers in groups.items():
            changes = first != last or first.own > 0
            yield (
                numbers,
                _PLAIN
                if changes
                else self._verified_way(first, [prompts[n] for n in numbers], sampling),
            )

    def _verified_way(
        self, kind: LengthClass, prompts: list[list[int]], sampling: Sampling
    ) -> _Way:
        longest = max(map(len, prompts))
        length = longest + sampling.max_tokens
        for way in _WAYS:
            key, padding = (way, kind), longest - min(map(len, prompts)) if way.is_batched else 0
            right_length, right_padding = self._verified.get(key, (0, 0))
            if length <= right_length and padding <= right_padding:
                return way
            if key not in self._closed:
                problem = self._problem(way, prompts, sampling)
                if problem is None:
                    self._verified[key] = max(length, right_length), max(padding, right_padding)
                    return way
                self._closed.add(key)
                beyond = f"beyond {right_length} tokens or {right_padding} of padding"
                logger.warning("%s: not used to generate texts %s (%s)", way.name, beyond, problem)
        return _PLAIN

    def _problem(self, way: _Way, prompts: list[list[int]], sampling: Sampling) -> str | None:
        """What is wrong with a way for the longest prompt, with the shortest and thus most padded one in its batch."""
        ordered = sorted(prompts, key=len)
        rows = [ordered[-1], ordered[0]] if way.is_batched and len(prompts) > 1 else ordered[-1:]
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
        except NOT_SERVED as error:
            return f"does not serve this model: {error}"
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
        """Largest difference of the most probable tokens' log-probabilities, in tolerances."""
        top = logprobs_SV.topk(min(_CHOICES_COMPARED, logprobs_SV.shape[-1]))
        expected = self.alone.row([], Wanted(prompt + new[:-1], top.indices.tolist()))
        return within(top.values.flatten(), expected, self.tolerance)

    def _batches(
        self, prompts: Sequence[list[int]], sampling: Sampling, way: _Way
    ) -> Iterator[list[int]]:
        budget = self.passes.batch_tokens if way.is_batched else 0
        return batches_of(sampling.max_tokens, [Wanted(prompt, []) for prompt in prompts], budget)

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

    def _plainly(self, prompts: list[list[int]], sampling: Sampling) -> list[list[list[int]]]:
        """One whole forward pass per new token."""
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
    """The most probable token, or one drawn as transformers' `generate` draws."""
    if sampling.temperature == 0:
        return logits_1V.argmax()
    ids = torch.empty(1, 0, dtype=torch.long, device=logits_1V.device)
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(sampling.temperature), TopPLogitsWarper(sampling.top_p)]
    )
    return torch.multinomial(warpers(ids, logits_1V).softmax(-1), 1)


def _until(tokens: list[int], stop: set[int]) -> list[int]:
    return tokens[: next((n for n, token in enumerate(tokens) if token in stop), len(tokens))]
