"""The vLLM engine (CUDA and CPU builds): option log-probabilities by token id, prefixes cached."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ift_scale.engines import coverage, weight_checks
from ift_scale.engines.coverage import OTHER_ENGINE
from ift_scale.engines.protocol import (
    EngineSpec,
    Sampling,
    ScoreRequest,
    TextRequest,
    ignore,
    resolved_dtype,
)
from ift_scale.errors import ConfigError, EnvironmentProblem
from ift_scale.models.config_file import model_config

# A fixed prompt whose log-probabilities must change when new weights are loaded.
_FINGERPRINT_TOKENS = [3, 5, 7, 11]


def repack_lm_head(worker: Any) -> None:
    """Repacks the LM head after a reload on a CPU.

    vLLM packs a copy of the LM head when it loads; a reload leaves the copy of a tied head
    unchanged (0.32).
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for layer in worker.get_model().modules():
        if isinstance(layer, VocabParallelEmbedding):
            layer.quant_method.process_weights_after_loading(layer)


def _counted(report: Callable[[int], None]) -> Any:
    """Returns a silent progress bar class for vLLM that reports each finished sequence."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Counted(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread

        def __init__(self, *args: Any, **kwargs: Any):
            # vLLM divides by the bar's elapsed time, which is 0 where TQDM_DISABLE hides bars.
            silent = {"file": io.StringIO(), "mininterval": 3600, "disable": False}
            super().__init__(*args, **kwargs | silent)

        def update(self, n: float | None = 1) -> bool | None:
            report(int(n or 0))
            return super().update(n)

    return Counted


def safe_max_model_len(settings: dict[str, Any], max_model_len: int | None) -> int | None:
    """Returns `max_model_len` for a model with this config.json; None leaves the choice to vLLM.

    `max_model_len` is the user's setting. vLLM computes all rows with one set of rotary
    frequencies, whereas transformers and the trainer choose by a row's length. With LongRoPE, vLLM
    uses the short ones if `max_model_len` is at most `original_max_position_embeddings` and the
    long ones otherwise; with dynamic NTK it always uses the scaled ones. Raises ConfigError if the
    frequencies would differ from the model's own.
    """
    text = settings.get("text_config") or settings
    parameters = text.get("rope_parameters") or text.get("rope_scaling") or {}
    for rope in (
        parameters.values()
        if parameters and all(isinstance(part, dict) for part in parameters.values())
        else [parameters]
    ):
        kind = rope.get("rope_type") or rope.get("type")
        if kind == "dynamic":
            problem = f"vLLM scales the rotary frequencies of every row (rope_type {kind})"
            raise ConfigError("engine", [f"{problem}; {OTHER_ENGINE}"])
        if "long_factor" in rope:
            limit = int(
                rope.get("original_max_position_embeddings")
                or text["original_max_position_embeddings"]
            )
            if max_model_len is not None and max_model_len > limit:
                problem = f"max_model_len: {max_model_len} exceeds LongRoPE's limit of {limit}"
                problem += " tokens, so vLLM would compute short prompts with the long prompts'"
                problem += " frequencies; remove it (longer prompts are refused), or"
                raise ConfigError("engine", [f"{problem} {OTHER_ENGINE}"])
            max_model_len = min(max_model_len or limit, limit)
    return max_model_len


class VllmEngine:
    def __init__(self, spec: EngineSpec):
        self.finished: Callable[[float], None] = ignore
        # Engines already run in a child process; a nested one would survive a kill.
        os.environ.setdefault(
            "VLLM_ENABLE_V1_MULTIPROCESSING", "0" if spec.config.tensor_parallel_size == 1 else "1"
        )
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(spec.config.cpu_kv_cache_gib))
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        coverage.require_vllm(spec.model_path, spec.trust_remote_code)
        from vllm import LLM

        weight_checks.check_for_vllm(spec.model_path, spec.trust_remote_code)
        self._trusted = spec.trust_remote_code
        has_gpu = torch.cuda.is_available()
        eager = spec.config.enforce_eager
        arguments: dict[str, Any] = {
            "model": spec.model_path,
            "dtype": resolved_dtype(spec.dtype, has_gpu),
            "enforce_eager": not has_gpu if eager is None else eager,
            "tensor_parallel_size": spec.config.tensor_parallel_size,
            "enable_prefix_caching": True,
            "skip_tokenizer_init": True,
            "trust_remote_code": spec.trust_remote_code,
            "disable_log_stats": True,
            "seed": 0,
        }
        if has_gpu and not spec.config.generates:
            # CUDA graphs serve steps of a few tokens, and capturing dozens takes half a minute.
            # Scoring has no such steps.
            arguments["compilation_config"] = {"cudagraph_mode": "NONE"}
        if has_gpu:
            arguments["gpu_memory_utilization"] = spec.config.gpu_memory_utilization
        longest = safe_max_model_len(model_config(Path(spec.model_path)), spec.config.max_model_len)
        if longest is not None:
            arguments["max_model_len"] = longest
        optional = ("max_num_batched_tokens", "max_num_seqs")
        arguments |= {
            name: value for name in optional if (value := getattr(spec.config, name)) is not None
        }
        self.llm = LLM(**arguments)

    @property
    def context_length(self) -> int:
        return self.llm.llm_engine.model_config.max_model_len - 1  # one token is sampled

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        return self._score(requests, self.finished)

    def _score(
        self, requests: Sequence[ScoreRequest], report: Callable[[float], None]
    ) -> np.ndarray:
        from vllm import SamplingParams, TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=request.prompt) for request in requests]
        params = [
            SamplingParams(
                max_tokens=1, temperature=0, logprob_token_ids=request.options, detokenize=False
            )
            for request in requests
        ]
        outputs = self.llm.generate(prompts, params, use_tqdm=_counted(report))
        scores = []
        for request, output in zip(requests, outputs, strict=True):
            by_id = output.outputs[0].logprobs[0]
            scores += [by_id[option].logprob for option in request.options]
        return np.array(scores, dtype=np.float64)

    def loglikelihood(self, requests: Sequence[TextRequest]) -> np.ndarray:
        return np.array([logprobs.sum() for logprobs in self.token_logprobs(requests)])

    def token_logprobs(self, requests: Sequence[TextRequest]) -> list[np.ndarray]:
        """Scores continuations by one next-token request per distinct (prefix, suffix).

        With `prompt_logprobs` vLLM would skip its prefix cache. These requests compute little more
        than the tokens that differ.
        """
        tokens_of: dict[tuple[int, tuple[int, ...]], set[int]] = {}
        distinct: dict[tuple[int, tuple[int, ...]], ScoreRequest] = {}
        for request in requests:
            for n, token in enumerate(request.continuation):
                suffix = request.suffix + request.continuation[:n]
                key = (id(request.prefix), tuple(suffix))
                tokens_of.setdefault(key, set()).add(token)
                distinct.setdefault(key, ScoreRequest(request.prefix, suffix, []))
        options = {key: sorted(tokens) for key, tokens in tokens_of.items()}
        share = len(requests) / max(1, len(distinct))
        score_requests = [distinct[key]._replace(options=options[key]) for key in distinct]
        flat = iter(
            self._score(score_requests, lambda count: self.finished(count * share)).tolist()
        )
        logprobs = {key: dict(zip(options[key], flat, strict=False)) for key in distinct}

        def of_token(request: TextRequest, n: int) -> float:
            key = (id(request.prefix), tuple(request.suffix + request.continuation[:n]))
            return logprobs[key][request.continuation[n]]

        return [
            np.array([of_token(request, n) for n in range(len(request.continuation))])
            for request in requests
        ]

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> list[list[list[int]]]:
        from vllm import SamplingParams, TokensPrompt

        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            # A request's own seed fails on a CPU ("CPU Generator does not use offset", 0.32).
            torch.manual_seed(sampling.seed)
        prompts = [TokensPrompt(prompt_token_ids=request.prompt) for request in requests]
        params = [
            SamplingParams(
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                n=sampling.num_samples,
                # vLLM adds the sample's number to the seed.
                seed=sampling.seed + number * sampling.num_samples if on_gpu else None,
                stop_token_ids=sampling.stop,
                detokenize=False,
            )
            for number in range(len(requests))
        ]
        report = _counted(lambda samples: self.finished(samples / sampling.num_samples))
        outputs = self.llm.generate(prompts, params, use_tqdm=report)
        stop = set(sampling.stop)
        return [
            [[t for t in sample.token_ids if t not in stop] for sample in output.outputs]
            for output in outputs
        ]

    def load_weights(self, path: Path) -> None:
        """Loads weights in place and checks that the output for a fixed prompt changes.

        Raises EnvironmentProblem if vLLM cannot swap this model's weights, and RuntimeError if the
        output stays the same.
        """
        from vllm.config import set_current_vllm_config

        # vLLM replaces some transformers classes, which cannot be built outside this context.
        with set_current_vllm_config(self.llm.llm_engine.vllm_config):
            weight_checks.check_for_vllm(path, self._trusted)
        on_cpu = not torch.cuda.is_available()
        if on_cpu and self.llm.llm_engine.model_config.is_moe:
            problem = "vLLM's CPU build keeps the previous model's experts after a weight reload"
            raise EnvironmentProblem(f"{problem} (0.32, gpt-oss); {OTHER_ENGINE}")
        fingerprint = ScoreRequest([], _FINGERPRINT_TOKENS, _FINGERPRINT_TOKENS)
        before = self._score([fingerprint], ignore)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        if on_cpu:
            self.llm.collective_rpc(repack_lm_head)
        self.reset_cache()
        if np.array_equal(before, self._score([fingerprint], ignore)):
            raise RuntimeError(f"vLLM's output did not change after loading {path}")

    def reset_cache(self) -> None:
        """Empties vLLM's prefix cache; raises RuntimeError if vLLM refuses."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache; start a new engine")
