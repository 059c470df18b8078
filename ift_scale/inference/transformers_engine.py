"""The reference engine: plain transformers, batched by length, left-padded, the common prefix computed once."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from ift_scale.inference.engine import EngineSpec, ScoreRequest, resolved_dtype

# Prompts that are the same up to here share a prefix that is worth computing once: a few-shot topic's, or a chat template's.
_GROUPED_BY = 32


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """How many leading tokens all prompts share, at least one being left to each."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    first, last = min(prompts), max(prompts)  # all others lie between these two, so their common prefix is everyone's
    return next((n for n in range(shortest) if first[n] != last[n]), shortest)


class TransformersEngine:
    def __init__(self, spec: EngineSpec):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, resolved_dtype(spec.dtype, self.device.type == "cuda"))
        self.batch_tokens = spec.config.batch_tokens
        self._max_model_len = spec.config.max_model_len
        self._load(spec.model_path)

    def _load(self, path: str | Path) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=self.dtype, local_files_only=True)
        self.model = model.to(self.device).eval()

    @property
    def context_length(self) -> int:
        return min(self._max_model_len or 1 << 30, self.model.config.max_position_embeddings) - 1

    def load_weights(self, path: Path) -> None:
        self._load(path)

    def reset_cache(self) -> None:
        """Nothing outlives a call of `score`."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(tuple(request.prompt[:_GROUPED_BY]), []).append(index)
        scores: list[np.ndarray] = [np.empty(0)] * len(requests)
        for indices in groups.values():
            for index, score in zip(indices, self._score_group([requests[i] for i in indices]), strict=True):
                scores[index] = score
        return scores

    @torch.inference_mode()
    def _score_group(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """Requests with a common beginning, as the questions of a topic have: what is before they part is computed once."""
        prefix = common_prefix([request.prompt for request in requests])
        cache = self._prefix_cache(requests[0].prompt[:prefix]) if prefix > 0 else None
        scores: list[np.ndarray] = [np.empty(0)] * len(requests)
        for batch in self._batches(requests, prefix):
            logprobs_BV = self._last_logprobs([requests[i].prompt[prefix:] for i in batch], cache, prefix)
            for row, index in enumerate(batch):
                scores[index] = logprobs_BV[row, requests[index].options].cpu().numpy()
        return scores

    def _batches(self, requests: Sequence[ScoreRequest], prefix: int) -> list[list[int]]:
        """Request numbers in batches of like length, each within the token budget, prefix included."""
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        batches: list[list[int]] = [[]]
        for index in order:
            width = len(requests[index].prompt)
            if batches[-1] and (len(batches[-1]) + 1) * width > self.batch_tokens:
                batches.append([])
            batches[-1].append(index)
        return batches

    def _prefix_cache(self, prefix: list[int]) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        self.model(torch.tensor([prefix], device=self.device), past_key_values=cache, logits_to_keep=1)
        return cache

    def _last_logprobs(self, prompts: list[list[int]], cache: DynamicCache | None, prefix: int) -> Tensor:
        """Log-probabilities of the next token, float64, shape (num_prompts, vocabulary)."""
        width = max(map(len, prompts))
        ids_BT = torch.zeros(len(prompts), width, dtype=torch.long)
        mask_BT = torch.zeros(len(prompts), prefix + width, dtype=torch.long)
        mask_BT[:, :prefix] = 1
        for row, prompt in enumerate(prompts):
            ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
            mask_BT[row, prefix + width - len(prompt) :] = 1
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, prefix:]
        past = None
        if cache is not None:
            past = copy.deepcopy(cache)
            past.batch_repeat_interleave(len(prompts))
        logits_B1V = self.model(
            ids_BT.to(self.device),
            attention_mask=mask_BT.to(self.device),
            position_ids=positions_BT.to(self.device),
            past_key_values=past,
            logits_to_keep=1,
        ).logits
        return logits_B1V[:, -1].double().log_softmax(-1)
