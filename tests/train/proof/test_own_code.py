"""A folder's own code is proven in a child process, and only if it is trusted."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ift_scale.cli import main
from ift_scale.config import TrainConfig
from ift_scale.errors import DataError
from ift_scale.train.proof import stored

pytestmark = pytest.mark.engine
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnLayer(LlamaDecoderLayer):
    def forward(self, hidden_states, *args, **kwargs):
        states = super().forward(hidden_states, *args, **kwargs)
        return states + LEAK * states.cumsum(1) / states.shape[1]


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        if LEAK:
            for number in range(len(self.model.layers)):
                self.model.layers[number] = OwnLayer(config, number)
        self.post_init()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _folder(path: Path, code: str) -> Path:
    path.mkdir()
    (path / "modeling_own.py").write_text(code)
    fields = {
        "model_type": "own_llama",
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
        "hidden_size": 256,
        "num_attention_heads": 8,
    }
    (path / "config.json").write_text(json.dumps(fields))
    return path


@pytest.mark.parametrize(("leak", "path"), [("0", "pruned"), ("0.1", "single")])
def test_it_is_proven_in_a_child(tmp_path: Path, leak: str, path: str) -> None:
    folder = _folder(tmp_path / "model", CODE.replace("LEAK", leak))
    modules = set(sys.modules)
    proof = stored.proof_of(folder, 2048, trust_remote_code=True)
    assert (proof.kind, proof.fastest(TrainConfig()).name) == ("OwnForCausalLM", path)
    assert not [name for name in set(sys.modules) - modules if "modeling_own" in name]
    (folder / "modeling_own.py").write_text("raise SystemExit('changed code is not proven')")
    with pytest.raises(DataError, match="auto_map"):
        stored.proof_of(folder, 2048, trust_remote_code=True)


def test_it_is_not_run_unless_it_is_trusted(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model", "raise SystemExit('the code was run')")
    with pytest.raises(DataError, match=r"model.trust_remote_code"):
        stored.proof_of(folder, 2048)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import os; os._exit(7)", "field 'auto_map': .*exit code 7"),
        ("raise ValueError('own problem')", "field 'auto_map.AutoConfig': .*: own problem"),
    ],
)
def test_code_that_fails_ends_the_child_only(tmp_path: Path, code: str, problem: str) -> None:
    folder = _folder(tmp_path / "model", code)
    with pytest.raises(DataError, match=problem) as caught:
        stored.proof_of(folder, 2048, trust_remote_code=True)
    assert str(caught.value).count("config.json") == 1


def test_doctor_shows_the_path_and_the_engine() -> None:
    result = CliRunner().invoke(main, ["doctor", "world"])
    assert result.exit_code == 0, result.output
    engine, path, proven, tokenizer = result.output.splitlines()[-4:]
    assert engine.startswith("engine: ") and proven.startswith("proven in ")
    assert tokenizer.startswith("tokenizer: ")
    assert path.startswith("LlamaForCausalLM: training path pruned (")
