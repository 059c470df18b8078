"""The engine protocol: token ids in; log-probabilities of chosen next tokens, of continuations, or sampled tokens out.

An engine runs in a child process (`inference.process`), so that it really ends, its memory is given back, and the caller
never imports torch.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ift_scale.config import EngineConfig

VLLM = "ift_scale.engines.vllm:VllmEngine"
TRANSFORMERS = "ift_scale.engines.transformers:TransformersEngine"


class ScoreRequest(NamedTuple):
    """One prompt as token ids, and the ids whose next-token log-probabilities are wanted.

    `prefix` is the beginning that the prompt shares with its neighbours, as one list object for all of them: an engine sees
    what is worth computing once, and the list crosses a pipe once.
    """

    prefix: list[int]
    suffix: list[int]
    options: list[int]

    @property
    def prompt(self) -> list[int]:
        return self.prefix + self.suffix


class TextRequest(NamedTuple):
    """A prompt, and the continuation whose log-likelihood is wanted (empty where text is to be generated)."""

    prefix: list[int]
    suffix: list[int]
    continuation: list[int]

    @property
    def prompt(self) -> list[int]:
        return self.prefix + self.suffix


class Sampling(NamedTuple):
    """How to generate: `temperature` 0 is greedy; generation ends before any of `stop`, or after `max_tokens`."""

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
    """Called during a call of a method below with the number of requests finished since the last time.

    A fraction where an engine splits a request. Whoever runs the engine sets it.
    """

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        """The natural-log probabilities of all requests' options over the whole vocabulary, one behind the other.

        Float64, shape (sum of num_options,).
        """

    def loglikelihood(self, requests: Sequence[TextRequest]) -> np.ndarray:
        """The natural-log probability of each continuation behind its prompt, summed over its tokens; float64, (num_requests,)."""

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> list[list[list[int]]]:
        """For each request `sampling.num_samples` lists of new token ids, the stop token not among them."""

    def load_weights(self, path: Path) -> None:
        """Take the weights of another checkpoint of the same architecture; nothing computed before is reused."""

    def reset_cache(self) -> None:
        """Forget everything computed for earlier requests."""

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt."""


@dataclass(frozen=True)
class EngineSpec:
    """All that a child process needs to build an engine. `factory` is MODULE:CLASS; `devices` are the GPUs it may see."""

    model_path: str
    dtype: str
    config: EngineConfig
    factory: str = ""
    devices: tuple[str, ...] = ()


# Settings that only say how fast or where an engine computes: they are in no key.
OPERATION = {
    "chunk_size", "tensor_parallel_size", "num_engines", "gpu_memory_utilization", "enforce_eager", "cpu_kv_cache_gib",
    "max_num_batched_tokens", "max_num_seqs", "batch_tokens", "whole_prompts",
}  # fmt: skip


def identity(config: EngineConfig, dtype: str) -> dict[str, Any]:
    """The settings that an engine's answers depend on, as they were given."""
    return config.model_dump(exclude=OPERATION) | {"dtype": dtype}


def resolved_identity(config: EngineConfig, dtype: str, on_gpu: bool) -> dict[str, Any]:
    """The same with `auto` resolved: shards of different engines or precisions are not mixed."""
    resolved = {
        "engine": resolved_engine(config.engine, on_gpu),
        "dtype": resolved_dtype(dtype, on_gpu),
    }
    return identity(config, dtype) | resolved


def resolved_engine(engine: str, on_gpu: bool) -> str:
    """`auto` is what was measured fastest (docs/measurements.md): vLLM on GPUs, on a CPU the transformers engine."""
    return engine if engine != "auto" else ("vllm" if on_gpu else "transformers")


def build(spec: EngineSpec, on_gpu: bool) -> Engine:
    """The engine that the spec names."""
    named = VLLM if resolved_engine(spec.config.engine, on_gpu) == "vllm" else TRANSFORMERS
    module, _, name = (spec.factory or named).partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(spec)
    return engine


def resolved_dtype(dtype: str, on_gpu: bool) -> str:
    return dtype if dtype != "auto" else ("bfloat16" if on_gpu else "float32")
