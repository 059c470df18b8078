"""An engine that computes nothing, used to measure the pipeline's own cost.

See benchmarks/bench_pipeline.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ift_scale.engines.protocol import EngineSpec, Sampling, ScoreRequest, TextRequest, ignore


class NullEngine:
    context_length = 1 << 20

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        self.finished: Callable[[float], None] = ignore

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        """Returns a uniform distribution over the options."""
        counts = np.array([len(request.options) for request in requests])
        return np.repeat(-np.log(counts), counts)

    def loglikelihood(self, requests: Sequence[TextRequest]) -> np.ndarray:
        return np.zeros(len(requests))

    def token_logprobs(self, requests: Sequence[TextRequest]) -> list[np.ndarray]:
        return [np.zeros(len(request.continuation)) for request in requests]

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> list[list[list[int]]]:
        return [[[] for _ in range(sampling.num_samples)] for _ in requests]

    def hidden_states(self, requests: Sequence[ScoreRequest]) -> tuple[np.ndarray, np.ndarray]:
        """Returns states of one layer and width 1, and no logit lens."""
        return np.zeros((len(requests), 1, 1), np.float32), np.full((len(requests), 1), -1, np.int8)

    def load_weights(self, path: Path) -> None:
        """Does nothing: there are no weights."""

    def reset_cache(self) -> None:
        """Does nothing: there is no cache."""
