"""The engine protocol: token ids in, log-probabilities or sampled token ids out.

An engine returns the log-probabilities of chosen next tokens or of continuations, or samples text.
It runs in a child process (`engines.process`), so that ending it frees its memory and the caller
never imports torch.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ift_scale.config.engines import EngineConfig
from ift_scale.engines import coverage

VLLM = "ift_scale.engines.vllm:VllmEngine"
TRANSFORMERS = "ift_scale.engines.transformers:TransformersEngine"


class ScoreRequest(NamedTuple):
    """A prompt as token ids, and the ids whose next-token log-probabilities are requested.

    `prefix` is the beginning that neighbouring prompts share. All of them refer to the same list
    object, so an engine can compute it once and it is pickled once.
    """

    prefix: list[int]
    suffix: list[int]
    options: list[int]

    @property
    def prompt(self) -> list[int]:
        return self.prefix + self.suffix


class TextRequest(NamedTuple):
    """A prompt and the continuation to score, which is empty if text is to be generated."""

    prefix: list[int]
    suffix: list[int]
    continuation: list[int]

    @property
    def prompt(self) -> list[int]:
        return self.prefix + self.suffix


class Sampling(NamedTuple):
    """Sampling parameters. `temperature` 0 is greedy decoding.

    Generation ends before any token of `stop`, or after `max_tokens`.
    """

    max_tokens: int
    stop: list[int]
    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1
    seed: int = 0


def ignore(count: float, /) -> None:
    """The default of `Engine.finished`."""


class Engine(Protocol):
    finished: Callable[[float], None]
    """Called by the methods below with the number of requests finished since the last call.

    The number is fractional if an engine splits a request. The owner of the engine sets it.
    """

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        """Returns the natural-log probabilities of all requests' options, concatenated.

        They are normalised over the whole vocabulary. Float64, shape (sum of num_options,).
        """

    def loglikelihood(self, requests: Sequence[TextRequest]) -> np.ndarray:
        """Returns the log-probability of each continuation after its prompt, summed over tokens.

        Natural logarithm, float64, shape (num_requests,).
        """

    def token_logprobs(self, requests: Sequence[TextRequest]) -> list[np.ndarray]:
        """Returns the log-probability of each token of each continuation.

        Natural logarithm, float64, one array of shape (num_tokens,) per request.
        """

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> list[list[list[int]]]:
        """Returns `sampling.num_samples` lists of new ids per request, stop tokens excluded."""

    def load_weights(self, path: Path) -> None:
        """Loads another checkpoint of the same architecture and drops everything cached."""

    def reset_cache(self) -> None:
        """Drops everything cached for earlier requests."""

    @property
    def context_length(self) -> int:
        """The maximum number of prompt tokens."""


@dataclass(frozen=True)
class EngineSpec:
    """Everything a child process needs to build an engine.

    `factory` is MODULE:CLASS; `devices` are the GPUs that the engine may see. `trust_remote_code`:
    run the model folder's own code.
    """

    model_path: str
    dtype: str
    config: EngineConfig
    factory: str = ""
    devices: tuple[str, ...] = ()
    trust_remote_code: bool = False


# Settings that affect only speed or placement, or which models are asked. They are part of no key.
OPERATION = {
    "base",
    "few_shot",
    "chunk_size",
    "tensor_parallel_size",
    "num_engines",
    "gpu_memory_utilization",
    "enforce_eager",
    "cpu_kv_cache_gib",
    "max_num_batched_tokens",
    "max_num_seqs",
    "batch_tokens",
    "whole_prompts",
    "start_timeout",
    "request_timeout",
}


def identity(config: EngineConfig, dtype: str) -> dict[str, Any]:
    """Returns the settings that an engine's results depend on, `auto` unresolved."""
    return config.model_dump(exclude=OPERATION) | {"dtype": dtype}


def resolved_identity(
    config: EngineConfig, dtype: str, on_gpu: bool, model: str | Path, trust_remote_code: bool
) -> dict[str, Any]:
    """As `identity` with `auto` resolved, so that shards of different engines are never mixed."""
    resolved = {
        "engine": resolved_engine(config.engine, on_gpu, model, trust_remote_code),
        "dtype": resolved_dtype(dtype, on_gpu),
    }
    return identity(config, dtype) | resolved


def resolved_engine(engine: str, on_gpu: bool, model: str | Path, trust_remote_code: bool) -> str:
    """Resolves `auto` to the engine measured fastest (docs/measurements.md).

    That is transformers on CPUs, and vLLM on GPUs if it has the class of the model.
    """
    if engine != "auto":
        return engine
    fits = on_gpu and coverage.reason_against_vllm(model, trust_remote_code) is None
    return "vllm" if fits else "transformers"


def build(spec: EngineSpec, on_gpu: bool) -> Engine:
    """Builds the engine that the spec names."""
    name = resolved_engine(spec.config.engine, on_gpu, spec.model_path, spec.trust_remote_code)
    default = VLLM if name == "vllm" else TRANSFORMERS
    module, _, name = (spec.factory or default).partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(spec)
    return engine


def resolved_dtype(dtype: str, on_gpu: bool) -> str:
    """Resolves `auto` to bfloat16 on GPUs and float32 on CPUs."""
    return dtype if dtype != "auto" else ("bfloat16" if on_gpu else "float32")
