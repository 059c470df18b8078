"""Scores of one tiny random model of every text-generation class that can be built small.

Every row, alone or beside others, after a prefix or whole, equals the model's own plain pass.
"""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ift_scale.config import EngineConfig
from ift_scale.engines.protocol import EngineSpec, ScoreRequest, TextRequest
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.train.proof.shrink import CannotShrink, shrink, text_class, tiny_model

pytestmark = pytest.mark.engine

# (length of the prefix, lengths of the suffixes): around windows, chunks and convolutions of 8 and
# 16 tokens, of equal and of very different lengths, alone and in batches.
_GROUPS = (
    (20, (3, 33, 20, 21, 5)),
    (0, (1, 4, 39, 60, 40, 41)),
    (0, (1, 1, 1)),
    (30, (1, 1, 1)),
    (1, (1, 2, 30, 64)),
    (70, (40, 1, 2, 7, 16)),
)
# transformers' SDPA silently ignores the capping of these models' scores (5.19).
_CAPPED = ("gemma2", "vaultgemma")
# Not text alone, or not causal without an encoder.
_OTHERS = """
    blt git whisper trocr musicgen musicgen_melody prophetnet cpmant xlnet reformer emu3 mllama
""".split()
TYPES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {*_OTHERS})


@pytest.mark.parametrize("model_type", TYPES)
def test_rows_equal_plain_passes(model_type: str, tmp_path: Path) -> None:
    try:
        kind, settings = text_class(CONFIG_MAPPING[model_type]())
        if hasattr(settings, "is_decoder"):
            settings.is_decoder = True
        tiny_model(kind, shrink(settings), 0).save_pretrained(tmp_path)
    except (CannotShrink, TypeError, AttributeError, KeyError, ValueError) as error:
        pytest.skip(f"its default config cannot be built small: {error}")
    config = EngineConfig(engine="transformers", batch_tokens=300)
    engine = TransformersEngine(EngineSpec(str(tmp_path), "float32", config))
    attention = "eager" if model_type in _CAPPED else None
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation=attention
    ).eval()
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(8, 100) for _ in range(count)]

    def log_probabilities(prompt: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = plain(torch.tensor([prompt]), **engine._passes.plain_options).logits
        return logits[0].double().log_softmax(-1)

    for length, lengths in _GROUPS:
        prefix = tokens(length)
        requests = [
            ScoreRequest(prefix, tokens(count), [8, 9, 10, 11][: rng.choice((2, 4))])
            for count in lengths
            if length + count <= engine.context_length
        ]
        expected = torch.cat([log_probabilities(r.prompt)[-1][r.options] for r in requests])
        np.testing.assert_allclose(engine.score(requests), expected, atol=1e-4)
        texts = [
            TextRequest(prefix, tokens(count), tokens(new))
            for count, new in zip(lengths, (1, 3, 5), strict=False)
            if length + count + new <= engine.context_length
        ]
        sums = [
            float(
                log_probabilities(r.prompt + r.continuation[:-1])[-len(r.continuation) :]
                .gather(1, torch.tensor(r.continuation)[:, None])
                .sum()
            )
            for r in texts
        ]
        np.testing.assert_allclose(engine.loglikelihood(texts), sums, atol=1e-4)
