"""Which engine serves a model, by vLLM's own list of classes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ift_scale.config import BUILTIN_MODEL, EngineConfig, ModelConfig
from ift_scale.engines import coverage, pool
from ift_scale.engines.protocol import EngineSpec, resolved_engine
from ift_scale.engines.vllm import VllmEngine
from ift_scale.errors import ConfigError
from ift_scale.io.progress import Bar
from ift_scale.ranks.environment import Ranks


def _folder(path: Path, name: str | None) -> Path:
    path.mkdir()
    fields = {"model_type": "x"} | ({"architectures": [name]} if name else {})
    (path / "config.json").write_text(json.dumps(fields))
    return path


@pytest.fixture(autouse=True)
def vllms_list(monkeypatch: pytest.MonkeyPatch) -> None:
    known = frozenset({"LlamaForCausalLM", "Gemma3ForConditionalGeneration"})
    monkeypatch.setattr(coverage, "_listed", lambda: known)
    monkeypatch.setattr(coverage, "_version", lambda: "9.9")


def test_auto_takes_transformers_for_a_class_that_vllm_lacks(tmp_path: Path) -> None:
    llama, rwkv = (_folder(tmp_path / n, f"{n}ForCausalLM") for n in ("Llama", "Rwkv"))
    nameless = _folder(tmp_path / "nameless", None)
    assert resolved_engine("auto", True, llama) == "vllm"
    assert resolved_engine("auto", True, BUILTIN_MODEL) == "vllm"
    assert resolved_engine("auto", False, llama) == "transformers"
    assert resolved_engine("auto", True, rwkv) == "transformers"
    assert resolved_engine("auto", True, nameless) == "transformers"
    assert resolved_engine("vllm", True, rwkv) == "vllm"
    assert coverage.describe(rwkv, True) == "engine: transformers (vLLM 9.9 has no RwkvForCausalLM)"
    assert coverage.describe(llama, True) == "engine: vllm (LlamaForCausalLM)"


def test_vllm_by_name_is_refused_before_it_starts(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m", "RwkvForCausalLM")
    with pytest.raises(
        ConfigError,
        match=r"engine: vllm: vLLM 9\.9 has no RwkvForCausalLM; set engine: transformers",
    ):
        VllmEngine(EngineSpec(str(folder), "float32", EngineConfig(engine="vllm")))


def test_the_engine_taken_instead_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pool, "own_devices", lambda ranks, size: ("0",))
    monkeypatch.setattr(pool, "EngineProcess", lambda spec, log: _Started())
    (worker,) = pool.engine_workers(
        EngineConfig(), ModelConfig(), tmp_path / "x.log", Ranks(0, 0, 1), Bar("t", 0, None)
    )
    worker.load(_folder(tmp_path / "m", "JambaForCausalLM"))
    assert "engine: transformers (vLLM 9.9 has no JambaForCausalLM)" in capsys.readouterr().out


class _Started:
    def ready(self) -> "_Started":
        return self


@pytest.mark.engine
def test_the_list_is_that_of_the_installed_vllm() -> None:
    """Read from the source, without an import of vLLM or torch, and equal to what vLLM reports."""
    program = (
        "import sys; from ift_scale.engines import coverage; names = coverage._listed();"
        " assert 'torch' not in sys.modules and 'vllm' not in sys.modules;"
        " from vllm.model_executor.models import registry as r;"
        " expected = {*r._TEXT_GENERATION_MODELS, *r._MULTIMODAL_MODELS,"
        " *r._TRANSFORMERS_SUPPORTED_MODELS};"
        " assert names == expected, names ^ expected; assert len(names) > 100;"
        " assert 'RwkvForCausalLM' not in names and 'LlamaForCausalLM' in names"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
