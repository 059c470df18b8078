"""Exports of classes other than the families of the other tests, and own code, in vLLM."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, OlmoeConfig, PretrainedConfig

from ift_scale.config import ProbeConfig, TrainConfig
from ift_scale.engines.process import EngineProcess
from ift_scale.engines.protocol import EngineSpec, ScoreRequest, build
from ift_scale.errors import ConfigError
from ift_scale.train.engine.export import export
from ift_scale.train.model import packed
from ift_scale.train.proof import shrink
from tests.train import own_experts

_TOKENIZER = SimpleNamespace(save_pretrained=lambda folder: None)
_OPTIONS = [3, 4, 5]
_PROMPTS = [[5, 6, 7], [8, 9], list(range(10, 40))]


def _spec(folder: Path, trusted: bool = False) -> EngineSpec:
    config = ProbeConfig(engine="vllm", cpu_kv_cache_gib=1)
    return EngineSpec(str(folder), "float32", config, trust_remote_code=trusted)


def _scores(folder: Path, log: Path) -> np.ndarray:
    engine = EngineProcess(_spec(folder), log).ready()
    try:
        return engine.score([ScoreRequest([], prompt, _OPTIONS) for prompt in _PROMPTS])
    finally:
        engine.close()


def _expected(model: Any) -> np.ndarray:
    with torch.no_grad():
        rows = [model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in _PROMPTS]
    return torch.stack(rows)[:, _OPTIONS].flatten().numpy()


def _written(settings: PretrainedConfig, folder: Path) -> Path:
    kind, settings = shrink.text_class(settings)
    shrink.tiny_model(kind, shrink.shrink(settings, hidden=128), 0).save_pretrained(folder)
    return folder


@pytest.mark.engine
@pytest.mark.parametrize("settings", [GPTNeoXConfig(), OlmoeConfig()], ids=["gpt_neox", "olmoe"])
def test_an_exported_model_scores_as_the_trained_one(
    settings: PretrainedConfig, tmp_path: Path
) -> None:
    base, out = _written(settings, tmp_path / "base"), tmp_path / "out"
    kind, found = packed.class_and_config(base)
    options = TrainConfig(activation_checkpointing="none")
    model = packed.build(kind, found, packed.read_weights(base), options, torch.float32, None)
    loss = model(torch.arange(40)[None], labels=torch.arange(40)[None]).loss
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    export(model, False, out, base, _TOKENIZER, torch.float32)
    np.testing.assert_allclose(_scores(out, tmp_path / "log"), _expected(model.eval()), atol=1e-4)


def test_a_class_of_the_folders_own_code_is_refused(tmp_path: Path) -> None:
    own_experts.write(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"the folder's own code; set engine: transformers"):
        build(_spec(tmp_path / "model", trusted=True), on_gpu=False)
