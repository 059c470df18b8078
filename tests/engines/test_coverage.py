"""Which engine serves a model, by vLLM's own list of classes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ift_scale.config import BUILTIN_MODEL, EngineConfig, ModelConfig
from ift_scale.engines import coverage, pool
from ift_scale.engines.protocol import EngineSpec, resolved_engine, resolved_identity
from ift_scale.engines.vllm import VllmEngine
from ift_scale.errors import ConfigError, EnvironmentProblem
from ift_scale.io.progress import Bar
from ift_scale.ranks.environment import Ranks


def _folder(path: Path, name: str | None, **fields: Any) -> Path:
    path.mkdir()
    fields |= {"model_type": "x"} | ({"architectures": [name]} if name else {})
    (path / "config.json").write_text(json.dumps(fields))
    return path


@pytest.fixture(autouse=True)
def vllms_list(monkeypatch: pytest.MonkeyPatch) -> None:
    known = frozenset({"LlamaForCausalLM", "Gemma3ForConditionalGeneration"})
    monkeypatch.setattr(coverage, "_listed", lambda: known)
    monkeypatch.setattr(coverage, "_version", lambda: "9.9")
    monkeypatch.setattr(coverage, "_has_plugin", lambda: False)


def test_auto_takes_transformers_for_a_class_that_vllm_lacks(tmp_path: Path) -> None:
    llama, rwkv = (_folder(tmp_path / n, f"{n}ForCausalLM") for n in ("Llama", "Rwkv"))
    nameless = _folder(tmp_path / "nameless", None)
    assert resolved_engine("auto", True, llama, False) == "vllm"
    assert resolved_engine("auto", True, BUILTIN_MODEL, True) == "vllm"
    assert resolved_engine("auto", False, llama, False) == "transformers"
    assert resolved_engine("auto", True, rwkv, False) == "transformers"
    assert resolved_engine("auto", True, nameless, False) == "transformers"
    assert resolved_engine("vllm", True, rwkv, False) == "vllm"
    assert (
        coverage.describe(rwkv, True, False)
        == "engine: transformers (vLLM 9.9 has no RwkvForCausalLM)"
    )
    assert coverage.describe(llama, True, False) == "engine: vllm (LlamaForCausalLM)"


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


_OWN = [
    {"AutoModelForCausalLM": "modeling_own.LlamaForCausalLM"},
    {"AutoConfig": "own.Config", "AutoTokenizer": ["own.Tokenizer", None]},
]
_NOT_OWN = [
    None,
    {},
    {"AutoConfig": None, "AutoModelForCausalLM": None},
    {"AutoTokenizer": ["own.Tokenizer", None]},
]


@pytest.mark.parametrize("auto_map", _OWN)
def test_trusted_own_code_is_not_replaced_by_vllms_class_of_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    auto_map: dict[str, Any],
) -> None:
    folder = _folder(tmp_path / "m", "LlamaForCausalLM", auto_map=auto_map)
    assert resolved_engine("auto", True, folder, True) == "transformers"
    assert resolved_engine("auto", True, folder, False) == "vllm"
    keys = [
        resolved_identity(EngineConfig(), "auto", True, folder, trusted)
        for trusted in (True, False)
    ]
    assert [key["engine"] for key in keys] == ["transformers", "vllm"]
    expected = "engine: transformers (vLLM does not run the class in the folder's own code)"
    assert coverage.describe(folder, True, True) == expected
    monkeypatch.setattr(pool, "own_devices", lambda ranks, size: ("0",))
    monkeypatch.setattr(pool, "EngineProcess", lambda spec, log: _Started())
    settings = ModelConfig(trust_remote_code=True)
    (worker,) = pool.engine_workers(
        EngineConfig(), settings, tmp_path / "x.log", Ranks(0, 0, 1), Bar("t", 0, None)
    )
    worker.load(folder)
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("auto_map", _NOT_OWN)
def test_trust_alone_does_not_change_the_engine(tmp_path: Path, auto_map: Any) -> None:
    folder = _folder(tmp_path / "m", "LlamaForCausalLM", auto_map=auto_map)
    assert resolved_engine("auto", True, folder, True) == "vllm"
    coverage.require_vllm(folder, True)


def test_vllm_by_name_is_refused_for_trusted_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin may have a class for a folder's, but not under a name of vLLM's own class."""
    own = {"auto_map": _OWN[0]}
    llama = _folder(tmp_path / "llama", "LlamaForCausalLM", **own)
    other = _folder(tmp_path / "other", "OwnForCausalLM", **own)
    message = "engine: vllm: vLLM does not run the class in the folder's own code; set engine: tran"
    for folder in (llama, other):
        with pytest.raises(ConfigError, match=message):
            coverage.require_vllm(folder, True)
    coverage.require_vllm(llama, False)
    monkeypatch.setattr(coverage, "_has_plugin", lambda: True)
    coverage.require_vllm(other, True)
    assert resolved_engine("auto", True, other, True) == "transformers"
    with pytest.raises(ConfigError, match=message):
        coverage.require_vllm(llama, True)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (None, "it cannot be read"),
        ("_TEXT_GENERATION_MODELS = {", "it cannot be read"),
        ("\0", "it cannot be read"),
        ("MODELS = {'LlamaForCausalLM': 1}", "it has none of _TEXT_GENERATION_MODELS"),
        ("_TEXT_GENERATION_MODELS = {}", "it has none of _TEXT_GENERATION_MODELS"),
        ("_TEXT_GENERATION_MODELS = dict(LlamaForCausalLM=1)", "it has none of"),
    ],
)
def test_a_vllm_without_its_list_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, problem: str
) -> None:
    monkeypatch.undo()
    registry = tmp_path / "vllm" / coverage._REGISTRY
    registry.parent.mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").touch()
    if source is not None:
        registry.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    folder = _folder(tmp_path / "m", "LlamaForCausalLM")
    coverage._listed.cache_clear()
    with pytest.raises(EnvironmentProblem) as caught:
        coverage.describe(folder, True, False)
    coverage._listed.cache_clear()
    message = str(caught.value)
    assert message.startswith(f"{registry}: ") and problem in message
    assert message.endswith("or set engine: transformers")


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
