"""The arguments that the vLLM engine passes to vLLM, without vLLM."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ift_scale.config import EngineConfig, EvaluateConfig, ProbeConfig
from ift_scale.engines.protocol import EngineSpec
from ift_scale.engines.vllm import VllmEngine


@pytest.mark.parametrize(
    ("config", "on_gpu", "graphs"),
    [
        (ProbeConfig(), True, False),
        (ProbeConfig(free={"ask": True}), True, True),
        (ProbeConfig(reliability={"grades": True, "demonstration_draws": 2}), True, True),
        (EvaluateConfig(), True, False),
        (EvaluateConfig(generate=True), True, True),
        (EngineConfig(), True, True),
        (ProbeConfig(), False, True),  # vLLM on a CPU has none to leave out
    ],
)
def test_graphs_are_captured_only_for_an_engine_that_generates(
    monkeypatch: pytest.MonkeyPatch,
    world_model: Path,
    config: EngineConfig,
    on_gpu: bool,
    graphs: bool,
) -> None:
    asked: dict[str, Any] = {}
    vllm = SimpleNamespace(
        LLM=lambda **arguments: asked.update(arguments), __spec__=ModuleSpec("vllm", None)
    )
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    VllmEngine(EngineSpec(str(world_model), "bfloat16", config))
    assert ("compilation_config" not in asked) == graphs
    assert graphs or asked["compilation_config"] == {"cudagraph_mode": "NONE"}
    assert asked["enforce_eager"] is not on_gpu
