"""The transformers engine: the reference, and the fastest on a CPU. A prefix that prompts share is computed once.

Two ways to the same numbers. *Shared* (CPU): suffixes packed without padding behind the prefix (`shared_prefix`). *Padded*
(anywhere, any architecture): a left-padded batch behind copies of the prefix' KV cache. Loading a model compares the two on a fixed
prompt and takes the padded way where they differ, so that no architecture with other attention is computed wrongly.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from ift_scale.inference import shared_prefix, weights
from ift_scale.inference.engine import EngineSpec, Sampling, ScoreRequest, TextRequest, resolved_dtype

# Prompts without a stated prefix share one when they are the same up to here, as those of a chat template are.
_GROUPED_BY = 32
_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
# Largest difference of the two ways, in nats, on the fixed prompt; bfloat16 rounds at 2^-8 in every layer.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}


class Wanted(NamedTuple):
    """A suffix, and the ids whose log-probabilities are wanted behind its last `len(targets)` positions, a list for each."""

    suffix: list[int]
    targets: list[list[int]]


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """How many leading tokens all prompts share, at least one being left to each."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    first, last = min(prompts), max(prompts)  # all others lie between these two, so their common prefix is everyone's
    return next((n for n in range(shortest) if first[n] != last[n]), shortest)


class TransformersEngine:
    def __init__(self, spec: EngineSpec):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, resolved_dtype(spec.dtype, self.device.type == "cuda"))
        self.batch_tokens = spec.config.batch_tokens or _BATCH_TOKENS[self.device.type]
        self._max_model_len = spec.config.max_model_len
        self._load(spec.model_path)

    def _load(self, path: str | Path) -> None:
        weights.check(path)
        self.model: Any = None  # two models at once may not fit
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=self.dtype, local_files_only=True)
        self.model = model.to(self.device).eval()
        if getattr(self.model.config, "attn_logit_softcapping", None) is not None:
            self.model.set_attn_implementation("eager")  # transformers' SDPA leaves the capping out, silently (5.19)
        self._padded_attention = self.model.config._attn_implementation
        self.shares_prefix = self.device.type == "cpu" and self._ways_agree()

    def _ways_agree(self) -> bool:
        """Whether this model's attention is what `shared_prefix` computes."""
        vocabulary = self.model.get_input_embeddings().num_embeddings
        tokens = [(7 * n + 3) % vocabulary for n in range(60)]
        prefix, asked = tokens[:30], [Wanted(tokens[30:50], [tokens[:20]]), Wanted(tokens[41:60], [tokens[:20]])]
        padded = torch.cat(self._padded(prefix, asked))
        layers = getattr(self.model.base_model, "layers", None)
        try:
            if layers is None:
                raise AttributeError("its layers are not where they are looked for")
            last = layers[-1]
            layers[-1] = shared_prefix.LastRowsLayer(last)
            difference = float((torch.cat(self._shared(prefix, asked)) - padded).abs().max())
            if difference <= _TOLERANCE[self.dtype]:
                return True
            problem = f"differs by {difference:.3g} nats"
        except (TypeError, RuntimeError, AttributeError, ValueError) as error:
            problem = f"does not serve it: {error}"
        if layers is not None:
            layers[-1] = last
        print(f"shared-prefix attention is not this model's; padded batches are used ({problem})", flush=True)
        return False

    @property
    def context_length(self) -> int:
        return min(self._max_model_len or 1 << 30, self.model.config.max_position_embeddings) - 1

    def load_weights(self, path: Path) -> None:
        self._load(path)

    def reset_cache(self) -> None:
        """Nothing outlives a call."""

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        wanted = [Wanted(request.suffix, [request.options]) for request in requests]
        return torch.cat(self._logprobs([request.prefix for request in requests], wanted)).numpy()

    def loglikelihood(self, requests: Sequence[TextRequest]) -> np.ndarray:
        wanted = [Wanted(r.suffix + r.continuation[:-1], [[token] for token in r.continuation]) for r in requests]
        return np.array([float(found.sum()) for found in self._logprobs([request.prefix for request in requests], wanted)])

    def _logprobs(self, prefixes: Sequence[list[int]], wanted: Sequence[Wanted]) -> list[Tensor]:
        """For each suffix the log-probabilities of its targets, one behind the other, float64."""
        groups: dict[tuple[int, ...], list[int]] = {}
        keys: dict[int, tuple[int, ...]] = {}
        for index, (prefix, item) in enumerate(zip(prefixes, wanted, strict=True)):
            if prefix:
                key = keys.setdefault(id(prefix), (len(prefix), *prefix))
            else:
                key = (0, *item.suffix[: min(_GROUPED_BY, len(item.suffix) - len(item.targets))])
            groups.setdefault(key, []).append(index)
        found: list[Tensor] = [torch.empty(0)] * len(wanted)
        for indices in groups.values():
            prefix, items = self._longest_prefix(prefixes[indices[0]], [wanted[i] for i in indices])
            for index, logprobs in zip(indices, self._group(prefix, items), strict=True):
                found[index] = logprobs
        return found

    def _longest_prefix(self, prefix: list[int], items: list[Wanted]) -> tuple[list[int], list[Wanted]]:
        """Moves what the suffixes still share over to the prefix, all wanted positions being left to them."""
        more = common_prefix([item.suffix[: len(item.suffix) - len(item.targets) + 1] for item in items]) if len(items) > 1 else 0
        return prefix + items[0].suffix[:more], [Wanted(item.suffix[more:], item.targets) for item in items]

    def _group(self, prefix: list[int], items: Sequence[Wanted]) -> list[Tensor]:
        window = getattr(self.model.config, "sliding_window", None)
        longest = len(prefix) + max(len(item.suffix) for item in items)
        if self.shares_prefix and (window is None or longest <= window):
            return self._shared(prefix, items)
        return self._padded(prefix, items)

    def _batches(self, prefix_length: int, items: Sequence[Wanted]) -> Iterator[list[int]]:
        """Item numbers in batches of like length, each within the token budget."""
        batch: list[int] = []
        for index in sorted(range(len(items)), key=lambda i: len(items[i].suffix)):
            if batch and (len(batch) + 1) * (prefix_length + len(items[index].suffix)) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        yield batch

    @torch.inference_mode()
    def _shared(self, prefix: list[int], items: Sequence[Wanted]) -> list[Tensor]:
        self._use_attention(shared_prefix.NAME)
        recorder = shared_prefix.PrefixRecorder()
        if prefix:
            self.model(torch.tensor([prefix]), use_cache=False, logits_to_keep=1, shared=recorder)
        found: list[Tensor] = [torch.empty(0)] * len(items)
        for batch in self._batches(0, items):
            suffixes = [items[i].suffix for i in batch]
            counts = [len(items[i].targets) for i in batch]
            packed = shared_prefix.PackedSuffixes([len(s) for s in suffixes], counts, recorder.prefix, len(prefix))
            logits_1RV = self.model(
                torch.tensor([[token for suffix in suffixes for token in suffix]]),
                position_ids=packed.positions_N[None],
                use_cache=False,
                shared=packed,
            ).logits
            for index, logits_TV in zip(batch, logits_1RV[0].split(counts), strict=True):
                found[index] = _picked(logits_TV, items[index].targets)
        return found

    @torch.inference_mode()
    def _padded(self, prefix: list[int], items: Sequence[Wanted]) -> list[Tensor]:
        self._use_attention(self._padded_attention)
        cache = DynamicCache(config=self.model.config) if prefix else None
        if prefix:
            self.model(torch.tensor([prefix], device=self.device), past_key_values=cache, logits_to_keep=1)
        found: list[Tensor] = [torch.empty(0)] * len(items)
        for batch in self._batches(len(prefix), items):
            keep = max(len(items[i].targets) for i in batch)
            logits_BKV = self._padded_logits([items[i].suffix for i in batch], cache, len(prefix), keep)
            for index, logits_KV in zip(batch, logits_BKV, strict=True):
                found[index] = _picked(logits_KV[-len(items[index].targets) :], items[index].targets)
        return found

    def _padded_logits(self, suffixes: list[list[int]], cache: DynamicCache | None, prefix: int, keep: int) -> Tensor:
        """Logits of the last `keep` positions, shape (num_suffixes, keep, vocabulary); padded on the left."""
        width = max(map(len, suffixes))
        ids_BT = torch.zeros(len(suffixes), width, dtype=torch.long)
        mask_BT = torch.zeros(len(suffixes), prefix + width, dtype=torch.long)
        mask_BT[:, :prefix] = 1
        for row, suffix in enumerate(suffixes):
            ids_BT[row, width - len(suffix) :] = torch.tensor(suffix)
            mask_BT[row, prefix + width - len(suffix) :] = 1
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, prefix:]
        past = None
        if cache is not None:
            past = copy.deepcopy(cache)
            past.batch_repeat_interleave(len(suffixes))
        return self.model(
            ids_BT.to(self.device),
            attention_mask=mask_BT.to(self.device),
            position_ids=positions_BT.to(self.device),
            past_key_values=past,
            logits_to_keep=keep,
        ).logits

    def _use_attention(self, name: str) -> None:
        if self.model.config._attn_implementation != name:
            self.model.set_attn_implementation(name)

    @torch.inference_mode()
    def generate(self, requests: Sequence[TextRequest], sampling: Sampling) -> list[list[list[int]]]:
        self._use_attention(self._padded_attention)
        torch.manual_seed(sampling.seed)
        found: list[list[list[int]]] = [[] for _ in requests]
        items = [Wanted(request.prompt, []) for request in requests]
        for batch in self._batches(sampling.max_tokens, items):
            for index, tokens in zip(batch, self._generate([items[i].suffix for i in batch], sampling), strict=True):
                found[index] = tokens
        return found

    def _generate(self, prompts: list[list[int]], sampling: Sampling) -> list[list[list[int]]]:
        width = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=self.device)
        mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device)
        choice: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        out_MT = self.model.generate(
            ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=sampling.max_tokens,
            num_return_sequences=sampling.num_samples,
            eos_token_id=sampling.stop,
            pad_token_id=sampling.stop[0],
            **choice,
        )[:, width:]
        new = [_until(tokens, set(sampling.stop)) for tokens in out_MT.tolist()]
        count = sampling.num_samples
        return [new[n * count : (n + 1) * count] for n in range(len(prompts))]


def _picked(logits_TV: Tensor, targets: list[list[int]]) -> Tensor:
    """Float64 log-probabilities of each position's targets, one behind the other."""
    logits_TV = logits_TV.double()
    norm_T = logits_TV.logsumexp(-1)
    return torch.cat([logits_TV[row, ids] - norm_T[row] for row, ids in enumerate(targets)]).cpu()


def _until(tokens: list[int], stop: set[int]) -> list[int]:
    return tokens[: next((n for n, token in enumerate(tokens) if token in stop), len(tokens))]
