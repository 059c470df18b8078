"""The reference engine against one plain forward pass a prompt."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ift_scale.config import EngineConfig
from ift_scale.inference.engine import EngineSpec, ScoreRequest
from ift_scale.inference.transformers_engine import TransformersEngine, common_prefix


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=101, max_position_embeddings=128, initializer_range=0.3, **sizes))
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("prefix", [0, 1, 17])
def test_batches_equal_single_prompts(folder: Path, prefix: int) -> None:
    rng = random.Random(prefix)
    common = [rng.randrange(101) for _ in range(prefix)]
    prompts = [common + [rng.randrange(101) for _ in range(rng.randrange(1, 30))] for _ in range(23)]
    requests = [ScoreRequest(prompt, [rng.randrange(101) for _ in range(4)]) for prompt in prompts]
    engine = TransformersEngine(EngineSpec(str(folder), "float32", EngineConfig(engine="transformers", batch_tokens=150)))
    scores = engine.score(requests)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for request, score in zip(requests, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([request.prompt])).logits[0, -1].double()
        np.testing.assert_allclose(score, logits.log_softmax(-1)[request.options].numpy(), atol=1e-4)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_common_prefix(prompts: list[list[int]]) -> None:
    length = common_prefix(prompts)
    assert all(p[:length] == prompts[0][:length] for p in prompts)
    longer = length + 1
    assert longer > min(map(len, prompts)) - 1 or len({tuple(p[:longer]) for p in prompts}) > 1
