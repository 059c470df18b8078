"""States and the logit lens of the transformers engine against plain forward passes."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from ift_scale.config import EngineConfig
from ift_scale.engines.hidden_states import SharedStates, StatePasses
from ift_scale.engines.protocol import EngineSpec, ScoreRequest
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.errors import DataError

WIDTH, LAYERS = 32, 3


def _models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, "vocab_size": 97}
    llama = LlamaConfig(hidden_size=WIDTH, intermediate_size=48, initializer_range=0.3, **shape)
    gpt2 = GPT2Config(
        n_embd=WIDTH, n_layer=LAYERS, n_head=2, vocab_size=97, n_positions=128,
        initializer_range=0.3, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    # Its layers end with their norm, so nothing without matrices is left before the head.
    opt = OPTConfig(
        hidden_size=WIDTH, ffn_dim=48, word_embed_proj_dim=WIDTH, do_layer_norm_before=False,
        max_position_embeddings=128, init_std=0.3, **shape,
    )  # fmt: skip
    return {
        "llama": LlamaForCausalLM(llama),
        "gpt2": GPT2LMHeadModel(gpt2),
        "opt": OPTForCausalLM(opt),
    }


def _requests(count: int = 30) -> list[ScoreRequest]:
    rng = random.Random(0)
    prefix = [rng.randrange(2, 97) for _ in range(20)]
    return [
        ScoreRequest(
            prefix, [rng.randrange(2, 97) for _ in range(rng.randint(1, 12))], [5, 6, 7, 8]
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_states_equal_plain_forward_passes(family: str, tmp_path: Path) -> None:
    model = _models()[family].eval()
    model.save_pretrained(tmp_path)
    config = EngineConfig(engine="transformers", batch_tokens=150)
    engine = TransformersEngine(EngineSpec(str(tmp_path), "float32", config))
    counted: list[float] = []
    engine.finished = counted.append
    requests = _requests()
    states_RLH, lens_RL = engine.hidden_states(requests)
    assert states_RLH.shape == (30, LAYERS + 1, WIDTH) and states_RLH.dtype == np.float32
    assert sum(counted) == 30
    used = {name for name, _ in engine._states.verified}
    assert (SharedStates.name in used) == (family == "llama")
    for request, states_LH in zip(requests, states_RLH, strict=True):
        with torch.no_grad():
            out = model(torch.tensor([request.prompt]), output_hidden_states=True)
        plain_LH = torch.stack([state[0, -1] for state in out.hidden_states]).numpy()
        np.testing.assert_allclose(states_LH[:-1], plain_LH[:-1], atol=1e-4, rtol=1e-4)
    # The lens of the last layer is the model's own answer.
    answers_R = engine.score(requests).reshape(30, 4).argmax(1)
    if engine._states.single_rows.passes.final_norm is None:
        assert family == "opt" and (lens_RL == -1).all()
    else:
        np.testing.assert_array_equal(lens_RL[:, -1], answers_R)
        assert (lens_RL[:, 0] != answers_R).any()


def test_options_that_begin_alike_have_no_lens(tmp_path: Path) -> None:
    _models()["llama"].save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers"))
    )
    alike = [ScoreRequest([], [3, 4], [5, 5]), ScoreRequest([], [3, 4], [5, 6])]
    _, lens_RL = engine.hidden_states(alike)
    assert (lens_RL[0] == -1).all() and (lens_RL[1] >= 0).all()


def test_a_model_without_accessible_layers_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _models()["llama"].save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers"))
    )
    forward = engine.model.forward

    def without_states(*args: Any, **options: Any) -> Any:
        return SimpleNamespace(logits=forward(*args, **options).logits, hidden_states=None)

    monkeypatch.setattr(engine.model, "forward", without_states)
    with pytest.raises(DataError, match="LlamaForCausalLM does not return the states"):
        StatePasses(engine._passes)
