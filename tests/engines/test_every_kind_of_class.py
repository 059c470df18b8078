"""Scores of a tiny random model of every kind of text-generation class.

Every row, alone or beside others, after a prefix or whole, equals the model's own plain pass.
"""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.class_configs import example
from ift_scale.config import EngineConfig
from ift_scale.engines.protocol import EngineSpec, Sampling, ScoreRequest, TextRequest
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.train.proof.shrink import shrink, text_class, tiny_model

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
# One or several for each mechanism; `python -m benchmarks run classes` has all classes.
TYPES = """
    bamba big_bird bloom cohere2 ctrl deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge
    falcon falcon_h1 falcon_mamba gemma2 gemma3_text gemma3n_text gpt2 gpt_neox gpt_oss gptj
    granitemoehybrid hrm_text inkling_text jamba kimi_linear lfm2 lfm2_moe llama llama4_text
    longcat_flash mamba mamba2 minimax mixtral moshi mpt nemotron_h olmo_hybrid opt phi phi3
    qwen3_5_text qwen3_moe qwen3_next recurrent_gemma roberta rwkv stablelm xglm xlstm zamba2
""".split()


@pytest.mark.parametrize("model_type", TYPES)
def test_rows_equal_plain_passes(model_type: str, tmp_path: Path) -> None:
    kind, settings = text_class(example(model_type))
    tiny_model(kind, shrink(settings), 0).save_pretrained(tmp_path)
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


# Causal, windows, chunks and windows, states, states and attention, ALiBi, learned positions.
@pytest.mark.parametrize(
    "model_type", "llama gemma3_text llama4_text mamba2 bamba bloom mpt gpt2 opt".split()
)
def test_texts_after_a_shared_prefix_equal_plain_generation(
    model_type: str, tmp_path: Path
) -> None:
    kind, settings = text_class(example(model_type))
    tiny_model(kind, shrink(settings), 0).save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers"))
    )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    rng = random.Random(2)
    for length, lengths in ((20, (3, 12, 1, 7)), (4, (2, 30, 5))):  # around windows of 8
        prefix = [rng.randrange(8, 100) for _ in range(length)]
        requests = [
            TextRequest(prefix, [rng.randrange(8, 100) for _ in range(count)], [])
            for count in lengths
        ]

        found = engine.generate(requests, Sampling(6, [2]))
        for request, (tokens,) in zip(requests, found, strict=True):
            ids = list(request.prompt)
            for token in [*tokens, 2][:6]:
                with torch.no_grad():
                    logits_V = plain(torch.tensor([ids]), use_cache=False).logits[0, -1]
                assert int(logits_V.argmax()) == token
                ids.append(token)
