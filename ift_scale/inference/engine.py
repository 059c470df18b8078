"""The engine protocol: token ids in, log-probabilities of chosen next tokens out.

An engine runs in a child process (`inference.process`), so that it really ends, its memory is given back, and the caller
never imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ift_scale.config import EngineConfig


@dataclass(frozen=True)
class ScoreRequest:
    """One prompt as token ids, and the ids whose next-token log-probabilities are wanted."""

    prompt: list[int]
    options: list[int]


class Engine(Protocol):
    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """For each request the natural-log probabilities of its options over the whole vocabulary, float64, (num_options,)."""

    def load_weights(self, path: Path) -> None:
        """Take the weights of another checkpoint of the same architecture; nothing computed before is reused."""

    def reset_cache(self) -> None:
        """Forget everything computed for earlier requests."""

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt."""


@dataclass(frozen=True)
class EngineSpec:
    """All that a child process needs to build an engine."""

    model_path: str
    dtype: str
    config: EngineConfig


def build(spec: EngineSpec) -> Engine:
    """The engine that `spec.config.engine` names."""
    if spec.config.engine == "vllm":
        from ift_scale.inference.vllm_engine import VllmEngine

        return VllmEngine(spec)
    from ift_scale.inference.transformers_engine import TransformersEngine

    return TransformersEngine(spec)


def resolved_dtype(dtype: str, has_gpu: bool) -> str:
    return dtype if dtype != "auto" else ("bfloat16" if has_gpu else "float32")
