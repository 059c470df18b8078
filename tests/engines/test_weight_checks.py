"""Weight files that do not match config.json's model are refused by name before loading."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, MixtralConfig

from benchmarks.class_configs import example
from ift_scale.config import EngineConfig
from ift_scale.engines import weight_checks
from ift_scale.engines.model_folder import INDEX, SINGLE, stored_tensors, weight_files
from ift_scale.engines.process import EngineProcess
from ift_scale.engines.protocol import EngineSpec
from ift_scale.errors import DataError, IFTScaleError
from ift_scale.train.model.packed import read_weights
from ift_scale.train.proof.shrink import shrink, text_class, tiny_model
from tests.train.families import CONFIGS

Tensors = dict[str, torch.Tensor]
TINY: dict[str, Any] = {"vocab_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return _saved(CONFIGS["llama"], tmp_path / "llama")


def _saved(config: Any, folder: Path, **how: Any) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, **how)
    return folder


def _change(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    tensors = load_file(folder / SINGLE)
    save_file(change(tensors) or tensors, folder / SINGLE, metadata={"format": "pt"})


def _configure(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _renamed(rename: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


def _without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("lm_head.weight"), r"lack tensors .*: lm_head\.weight\. .*tie_word_embeddings"),
        (
            _without(DOWN),
            r"lack tensors of config\.json's model: model\.layers\.1\.mlp\.down_proj\.weight",
        ),
        (_without("model.layers.0.self_attn.q_proj.bias"), r"lack .*q_proj\.bias"),
        (lambda t: t | {"score.weight": torch.ones(2, 2)}, r"does not have: score\.weight"),
        (
            lambda t: t | {"model.layers.3.input_layernorm.weight": torch.ones(32)},
            r"does not have: model\.layers\.3\.",
        ),
        (
            lambda t: t | {DOWN: t[DOWN].to(torch.int8)},
            r"contain integers.*: model\.layers\.1\..* is I8\. .*quantization_config",
        ),
        (
            lambda t: t | {DOWN: torch.ones(32, 47)},
            r"down_proj\.weight is \(32, 47\), not \(32, 48\)",
        ),
        (
            _renamed(lambda name: f"model.{name}"),
            r"wrapper's prefix 'model\.'.*model\.lm_head\.weight.* more",
        ),
        (
            _renamed(lambda name: f"base_model.model.{name}"),
            r"lack .* and \d+ more\. Save the model that is inside the wrapper",
        ),
        (
            _renamed(lambda name: f"_orig_mod.{name}"),
            r"lack .* and \d+ more\. Save the model that is inside the wrapper",
        ),
    ],
)
def test_refused_by_name(llama: Path, change: Any, message: str) -> None:
    _change(llama, change)
    with pytest.raises(DataError, match=message) as caught:
        weight_checks.check(llama)
    assert str(llama) in str(caught.value)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_as_transformers_saves_it_is_taken(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _saved(CONFIGS[family], tmp_path / family)
    capsys.readouterr()
    weight_checks.check(folder)
    weight_checks.check_for_vllm(folder)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (
            CONFIGS["llama"],
            lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
        ),
        (
            CONFIGS["gemma"],
            lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()},
        ),
        (
            CONFIGS["gemma"],
            _renamed(lambda name: name.removeprefix("model.")),
        ),  # saved as GemmaModel
        (
            GPT2Config(**TINY, n_embd=16),
            _renamed(lambda name: name.removeprefix("transformer.")),
        ),  # as the published one is
        (
            GPTNeoXConfig(**TINY, hidden_size=16, intermediate_size=32),
            lambda t: (
                t
                | {
                    "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
                    "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
                    "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2),
                }
            ),
        ),
        (
            MixtralConfig(
                **TINY,
                hidden_size=16,
                intermediate_size=32,
                num_key_value_heads=2,
                num_local_experts=3,
            ),
            _without(),
        ),
    ],
)
def test_usable_explanations_are_taken(config: Any, change: Any, tmp_path: Path) -> None:
    folder = _saved(config, tmp_path / "model")
    _change(folder, change)
    weight_checks.check(folder)


@pytest.mark.parametrize("complete", [True, False])
def test_tensors_that_transformers_joins_on_the_cpu_are_checked(
    tmp_path: Path, complete: bool
) -> None:
    """Qwen4 stores its embeddings of each layer in parts."""
    kind, settings = text_class(example("qwen4_exp_text"))
    tiny_model(kind, shrink(settings), 0).save_pretrained(tmp_path)
    part = next(name for name in load_file(tmp_path / SINGLE) if "ple_embedding" in name)
    if complete:
        weight_checks.check(tmp_path)
        return
    _change(tmp_path, lambda t: {name: t[name] for name in t if name != part})
    with pytest.raises(DataError, match=r"lack tensors of config.json's model: .*ple_embedding"):
        weight_checks.check(tmp_path)


def test_a_tied_pair_of_two_values_is_refused(tmp_path: Path) -> None:
    """transformers would untie them and vLLM would not."""
    folder = _saved(CONFIGS["gemma"], tmp_path / "model")
    _change(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] * 1.5})
    with pytest.raises(
        DataError,
        match=r"'tie_word_embeddings': ties lm_head\.weight to model\.embed_tokens\.weight",
    ):
        weight_checks.check(folder)
    _configure(folder, tie_word_embeddings=False)
    weight_checks.check(folder)


def test_quantised_weights_are_left_to_the_engine(
    llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _change(llama, _without(DOWN))
    _configure(llama, quantization_config={"quant_method": "gptq", "bits": 4})
    weight_checks.check(llama)
    assert "not checked: quantised" in capsys.readouterr().out


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Shards with an index, next to shards of an earlier save whose names sort after them."""
    folder = _saved(CONFIGS["llama"], tmp_path / "model", max_shard_size="20KB")
    files = {file.name for file in weight_files(folder)}
    assert len(files) > 2
    for file in weight_files(folder):
        stale = {name: torch.full_like(tensor, 9.0) for name, tensor in load_file(file).items()}
        save_file(stale, folder / file.name.replace("-of-", "-of-1"))
    return folder


def test_the_index_says_which_shards_count(sharded: Path) -> None:
    right = AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.float32).state_dict()
    found = read_weights(sharded)
    assert found.keys() == right.keys() and all(
        torch.equal(found[name], right[name]) for name in right
    )
    assert not any((tensor == 9.0).all() for tensor in found.values())
    weight_checks.check_for_vllm(sharded)  # it goes by the index too


def test_a_single_file_counts_before_an_index_as_in_transformers(sharded: Path) -> None:
    whole = {name: torch.full_like(tensor, 3.0) for name, tensor in read_weights(sharded).items()}
    save_file(whole, sharded / SINGLE, metadata={"format": "pt"})
    assert all((tensor == 3.0).all() for tensor in read_weights(sharded).values())
    assert (AutoModelForCausalLM.from_pretrained(sharded).lm_head.weight == 3.0).all()
    weight_checks.check(sharded)
    with pytest.raises(
        DataError,
        match=r"vLLM reads model-00001.*transformers and the trainer read"
        r" model\.safetensors\. Move .*index",
    ):
        weight_checks.check_for_vllm(sharded)
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], SINGLE)
    (sharded / INDEX).write_text(json.dumps(index))
    weight_checks.check_for_vllm(sharded)  # both read the single file
    (sharded / INDEX).unlink()  # vLLM would then read every file
    with pytest.raises(
        DataError, match=r"vLLM reads model-00001.*, model\.safetensors, and transformers"
    ):
        weight_checks.check_for_vllm(sharded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m | {"model.ghost.weight": m["lm_head.weight"]},
            r"'model\.ghost\.weight' to .* does not contain it",
        ),
        (
            lambda m: m | {"lm_head.weight": m["model.embed_tokens.weight"]},
            r"'lm_head\.weight' to .* does not contain it",
        ),
        (lambda m: m | {"lm_head.weight": "model-9.safetensors"}, r"1 shards are missing"),
        (lambda m: [], "must be an object"),
        (lambda m: {}, "must be an object"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(
    sharded: Path, change: Any, message: str
) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"] = change(index["weight_map"])
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match=message):
        stored_tensors(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    first, second = weight_files(sharded)[:2]
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(DataError, match=rf"{second.name}: .* is also in {first.name}"):
        stored_tensors(sharded)


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_an_engine_refuses_as_the_users_input(
    engine: Any, world_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(world_model, tmp_path / "model")
    _change(tmp_path / "model", _without("model.layers.1.mlp.down_proj.weight"))
    process = EngineProcess(
        EngineSpec(str(tmp_path / "model"), "float32", EngineConfig(engine=engine)),
        tmp_path / "log",
    )
    with pytest.raises(IFTScaleError, match=r"lack .*down_proj") as caught:
        process.ready()
    assert caught.value.exit_code == 2
