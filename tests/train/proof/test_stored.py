"""Proofs of folders: stored, found again, and invalid once anything they depend on changes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    BartConfig,
    BertConfig,
    BioGptConfig,
    DbrxConfig,
    DeepseekV3Config,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    Mamba2Config,
    MixtralConfig,
    OlmoeConfig,
    OPTConfig,
    Qwen3NextConfig,
    XGLMConfig,
)

from ift_scale.config import TrainConfig
from ift_scale.errors import DataError
from ift_scale.train.proof import stored

LENGTH = 2048


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ift-scale" / "proofs"


def _folder(path: Path, settings: Any, **fields: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings.to_diff_dict() | fields))
    return path


def test_a_proof_is_made_once(tmp_path: Path, cache: Path, monkeypatch: Any) -> None:
    folder = _folder(tmp_path / "model", MixtralConfig())
    first = stored.proof_of(folder, LENGTH)
    monkeypatch.setattr(stored, "compute", None)
    started = time.monotonic()
    assert stored.proof_of(folder, LENGTH) == first
    assert time.monotonic() - started < 1
    assert len(list(cache.iterdir())) == 1


def test_a_stored_proof_needs_neither_torch_nor_transformers(tmp_path: Path, cache: Path) -> None:
    folder = _folder(tmp_path / "model", LlamaConfig())
    stored.proof_of(folder, LENGTH)
    code = (
        "import sys; from pathlib import Path; from ift_scale.train.proof.stored import proof_of\n"
        f"print(proof_of(Path({str(folder)!r}), {LENGTH}).kind)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "LlamaForCausalLM\n"


@pytest.mark.parametrize("changed", ["config", "length", "source", "version", "own code"])
def test_a_proof_is_made_again_if_anything_changes(
    tmp_path: Path, cache: Path, monkeypatch: Any, changed: str
) -> None:
    folder, length = _folder(tmp_path / "model", LlamaConfig()), LENGTH
    stored.proof_of(folder, length)
    if changed == "config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"attention_bias": True}))
    elif changed == "length":
        length += 1
    elif changed == "version":
        monkeypatch.setattr(stored.metadata, "version", lambda package: "0.0")
    else:
        part = "llama" if changed == "source" else "proof"
        read = Path.read_bytes
        monkeypatch.setattr(
            Path, "read_bytes", lambda path: read(path) + b"#" * (path.parent.name == part)
        )
    stored.proof_of(folder, length)
    assert len(list(cache.iterdir())) == 2


def test_what_no_model_depends_on_does_not_count(tmp_path: Path, cache: Path) -> None:
    for number in (1, 2):
        folder = _folder(tmp_path / f"m{number}", LlamaConfig(), transformers_version=f"4.{number}")
        stored.proof_of(folder, LENGTH)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("content", ["", "{}", "no json"])
def test_a_damaged_entry_is_replaced(tmp_path: Path, cache: Path, content: str) -> None:
    folder = _folder(tmp_path / "model", LlamaConfig())
    first = stored.proof_of(folder, LENGTH)
    (entry,) = cache.iterdir()
    entry.write_text(content)
    assert stored.proof_of(folder, LENGTH).verdicts == first.verdicts
    assert json.loads(entry.read_text())["kind"] == "LlamaForCausalLM"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_a_read_only_cache_costs_time_only(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    assert stored.proof_of(_folder(tmp_path / "model", LlamaConfig()), LENGTH).verdicts


def test_a_model_that_cannot_be_trained_is_named(tmp_path: Path, cache: Path) -> None:
    folder = _folder(tmp_path / "model", BertConfig())
    with pytest.raises(
        DataError, match=r"config.json: field 'architectures': cannot be trained: .* later tokens"
    ):
        stored.proof_of(folder, LENGTH)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("settings", "field", "share"),
    [
        (OPTConfig(layerdrop=0.1), "layerdrop", 0.1),
        (XGLMConfig(layerdrop=0.05), "layerdrop", 0.05),
        (BioGptConfig(layerdrop=1.0), "layerdrop", 1.0),
        (BartConfig(decoder_layerdrop=0.2, is_encoder_decoder=False), "decoder_layerdrop", 0.2),
        (LlamaConfig(layer_dropout=0.3), "layer_dropout", 0.3),
        (LlamaConfig(drop_path_rate=0.4), "drop_path_rate", 0.4),
    ],
    ids=["opt", "xglm", "biogpt", "bart", "own name", "drop path"],
)
def test_layers_left_out_at_random_are_refused(
    tmp_path: Path, settings: Any, field: str, share: float
) -> None:
    with pytest.raises(
        DataError,
        match=rf"field '{field}': .*layers would be left out.*value: {share}\). Set {field} to 0",
    ):
        stored.proof_of(_folder(tmp_path / "model", settings), LENGTH)


def test_a_share_of_the_encoder_or_of_none_is_trained(tmp_path: Path) -> None:
    settings = BartConfig(encoder_layerdrop=0.1, decoder_layerdrop=0.0, is_encoder_decoder=False)
    stored.proof_of(_folder(tmp_path / "model", settings), LENGTH)


_DBRX_ATTENTION = {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000.0}


@pytest.mark.engine
@pytest.mark.parametrize(
    ("settings", "field", "problem"),
    [
        (MixtralConfig(num_experts_per_tok=9), "num_experts_per_tok", "at most num_local_experts"),
        (OlmoeConfig(num_experts_per_tok=65), "num_experts_per_tok", r"at most num_experts \(64"),
        (DeepseekV3Config(topk_group=9), "topk_group", r"must be at most n_group \(8\)"),
        (DeepseekV3Config(n_routed_experts=250), "n_routed_experts", r"multiple of n_group \(8\)"),
        (LlamaConfig(num_key_value_heads=5), "num_key_value_heads", "divide num_attention_heads"),
        (LlamaConfig(num_key_value_heads=64), "num_key_value_heads", r"divide .*heads \(32\)"),
        (
            Qwen3NextConfig(linear_num_value_heads=30),
            "linear_num_value_heads",
            r"must be a multiple of linear_num_key_heads \(16\)",
        ),
        (Mamba2Config(n_groups=7), "n_groups", r"must divide num_heads \(128\)"),
        (GPTJConfig(rotary_dim=300), "rotary_dim", "cannot train"),
        (
            DbrxConfig(
                ffn_config={"moe_num_experts": 4, "moe_top_k": 6}, attn_config=_DBRX_ATTENTION
            ),
            "ffn_config.moe_top_k",
            r"must be at most moe_num_experts \(4\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_numbers_that_no_model_can_have_are_refused(
    tmp_path: Path, settings: Any, field: str, problem: str
) -> None:
    with pytest.raises(DataError, match=rf"field '{field}': .*{problem}.*Correct it"):
        stored.proof_of(_folder(tmp_path / "model", settings), LENGTH)


def test_the_description_names_the_path_and_why_faster_ones_are_not_taken(tmp_path: Path) -> None:
    proof = stored.proof_of(_folder(tmp_path / "model", GPT2Config()), LENGTH)
    lines = stored.describe(proof, TrainConfig())
    assert lines[0].startswith("GPT2LMHeadModel: training path packed (")
    assert lines[1].startswith("not pruned: not possible: ")
    assert lines[2] == "attention computes dropout"
