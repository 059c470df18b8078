"""Classes of model folders: unknown ones, the folder's own code, quantised weights."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    MixtralConfig,
    PreTrainedModel,
    T5Config,
)

from ift_scale.config import EngineConfig, TrainConfig
from ift_scale.engines import model_folder, weight_checks
from ift_scale.engines.protocol import EngineSpec, ScoreRequest
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.errors import DataError
from ift_scale.models import config_class
from ift_scale.train.engine.export import export
from ift_scale.train.model import packed
from tests.engines.quantised import quantised_to_fp8, set_quantisation

_TOKENIZER = SimpleNamespace(save_pretrained=lambda folder: None)
_TINY: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_IDS = torch.arange(5, 20)[None]

CONFIGURATION = """
from transformers import PretrainedConfig


class ToyConfig(PretrainedConfig):
    model_type = "toy_of_this_test"

    def __init__(self, vocab_size=101, hidden_size=32, factor=1.0, **kwargs):
        self.vocab_size, self.hidden_size, self.factor = vocab_size, hidden_size, factor
        self.num_hidden_layers = 1
        super().__init__(**kwargs)
"""
MODELING = """
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_toy import ToyConfig

FACTOR = 1.0


class ToyForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = ToyConfig
    base_model_prefix = "toy"

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, **kwargs):
        hidden = self.embed(input_ids).cumsum(1) * FACTOR
        return CausalLMOutput(logits=self.lm_head(torch.tanh(hidden)))
"""


def _toy(folder: Path, factor: float = 1.0) -> Path:
    """A model whose class is defined by its folder: `factor` is in the code only."""
    folder.mkdir(parents=True)
    (folder / "configuration_toy.py").write_text(CONFIGURATION)
    (folder / "modeling_toy.py").write_text(MODELING.replace("FACTOR = 1.0", f"FACTOR = {factor}"))
    fields = {
        "model_type": "toy_of_this_test",
        "architectures": ["ToyForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_toy.ToyConfig",
            "AutoModelForCausalLM": "modeling_toy.ToyForCausalLM",
        },
        "vocab_size": 101,
        "hidden_size": 32,
        "transformers_version": "4.40.0",
    }
    (folder / "config.json").write_text(json.dumps(fields))
    torch.manual_seed(0)
    weights = {"embed.weight": torch.randn(101, 32), "lm_head.weight": torch.randn(101, 32)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _expected(folder: Path, factor: float, prompt: list[int]) -> torch.Tensor:
    weights = load_file(folder / "model.safetensors")
    hidden = weights["embed.weight"][prompt].sum(0) * factor
    return (weights["lm_head.weight"] @ torch.tanh(hidden)).double().log_softmax(-1)


def _engine(folder: Path, trusted: bool = True) -> TransformersEngine:
    config = EngineConfig(engine="transformers")
    return TransformersEngine(EngineSpec(str(folder), "float32", config, trust_remote_code=trusted))


@pytest.mark.engine
def test_a_folders_own_code_scores_trains_and_is_exported(tmp_path: Path) -> None:
    """Two folders of one name and with the same file names, but different code."""
    for name, factor in (("a", 0.5), ("b", 0.25)):
        base, out = _toy(tmp_path / name / "model", factor), tmp_path / name / "out"
        weight_checks.check(base, trust_remote_code=True)
        kind, settings = packed.class_and_config(base, trust_remote_code=True)
        options = TrainConfig(activation_checkpointing="none")
        built = packed.build(
            kind, settings, packed.read_weights(base), options, torch.float32, None
        )
        export(built, False, out, base, _TOKENIZER, torch.float32)
        assert sorted(path.name for path in out.glob("*.py")) == [
            "configuration_toy.py",
            "modeling_toy.py",
        ]
        for folder in (base, out):
            prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
            found = _engine(folder).score([ScoreRequest([], p, [3, 4]) for p in prompts])
            expected = [_expected(base, factor, p)[[3, 4]] for p in prompts]
            np.testing.assert_allclose(found, torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("read", [weight_checks.check, packed.class_and_config])
def test_a_folders_own_code_is_not_run_by_default(read: Any, tmp_path: Path) -> None:
    folder = _toy(tmp_path / "model")
    (folder / "configuration_toy.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(DataError) as caught:
        read(folder)
    for part in (
        "config.json: field 'auto_map'",
        "configuration_toy.py, modeling_toy.py",
        "model.trust_remote_code to true",
        "can do anything that your account can do",
    ):
        assert part in str(caught.value)


def test_code_that_fails_is_reported(tmp_path: Path) -> None:
    folder = _toy(tmp_path / "model")
    (folder / "configuration_toy.py").write_text("import a_package_that_nobody_has\n")
    with pytest.raises(DataError, match=r"cannot be imported: .*a_package_that_nobody_has"):
        config_class.read_config(folder, trust_remote_code=True)


def _config(folder: Path, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_an_unknown_class_names_the_versions(tmp_path: Path) -> None:
    folder = _config(
        tmp_path, model_type="nextgen9", transformers_version="6.2.0.dev0", vocab_size=7
    )
    with pytest.raises(DataError) as caught:
        weight_checks.check(folder)
    installed = transformers.__version__
    assert str(caught.value) == (
        f"{folder}/config.json: field 'model_type': transformers {installed}, which is installed,"
        " has no such class; config.json was written by 6.2.0.dev0 (value: 'nextgen9')."
        " Install transformers 6.2.0 or newer, which has the class"
    )


def test_a_config_that_its_class_refuses(tmp_path: Path) -> None:
    folder = _config(tmp_path, model_type="llama", num_attention_heads="many")
    with pytest.raises(
        DataError, match=r"'num_attention_heads': .* cannot read it: expected int, got"
    ):
        weight_checks.check(folder)


def test_a_class_that_writes_no_text(tmp_path: Path) -> None:
    folder = _config(tmp_path, model_type="vit")
    with pytest.raises(DataError, match=r"has no causal language model for it.*'vit'"):
        weight_checks.check(folder)


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_encoder_decoders_are_refused(name: str, tmp_path: Path) -> None:
    """Also if config.json leaves the field to the class' default."""
    with pytest.raises(DataError, match="an encoder-decoder answers from a separate input"):
        weight_checks.check(_config(tmp_path, model_type=name))
    stated = _config(tmp_path, model_type=name, is_encoder_decoder=True)
    with pytest.raises(DataError, match="an encoder-decoder answers from a separate input"):
        model_folder.resolve(str(stated))


def test_t5_states_what_it_is() -> None:
    assert T5Config().is_encoder_decoder


def test_a_config_without_a_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="field 'model_type': is missing"):
        model_folder.resolve(str(_config(tmp_path, vocab_size=7)))


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_quantised_base_models_are_refused(
    settings: dict[str, Any], method: str, tmp_path: Path
) -> None:
    folder = _config(tmp_path, model_type="llama", quantization_config=settings)
    with pytest.raises(DataError, match=f"'quantization_config': the weights are .*'{method}'"):
        model_folder.resolve(str(folder))
    assert model_folder.resolve(str(folder), "write.own.path", trained=False) == folder


@pytest.mark.engine
def test_fp8_is_undone_for_scores_training_and_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, plain, out = tmp_path / "base", tmp_path / "plain", tmp_path / "out"
    AutoModelForCausalLM.from_config(MixtralConfig(**_TINY)).save_pretrained(base)
    shutil.copytree(base, plain)
    values = quantised_to_fp8(base)
    save_file(values, plain / "model.safetensors", {"format": "pt"})
    model_folder.resolve(str(base))
    requests = [ScoreRequest([], [5, 6, 7, 8], [3, 4]), ScoreRequest([], [9, 10], [5, 6, 7])]
    found, expected = (_engine(folder, False).score(requests) for folder in (base, plain))
    np.testing.assert_allclose(found, expected, atol=1e-5)

    kind, settings = packed.class_and_config(base)
    options = TrainConfig(activation_checkpointing="none")
    built = packed.build(kind, settings, packed.read_weights(base), options, torch.float32, None)
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}
    export(built, False, out, base, _TOKENIZER, torch.float32)
    exported = load_file(out / "model.safetensors")
    assert exported.keys() == values.keys()
    assert all(torch.equal(exported[name], values[name]) for name in values)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


@pytest.mark.engine
def test_mxfp4_experts_are_undone(tmp_path: Path) -> None:
    """Each 4-bit number is one of 15 values times a power of 2."""
    torch.manual_seed(0)
    config = GptOssConfig(
        **_TINY,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = stored.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        stored[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        stored[f"{name}_scales"] = torch.full(shape, 120, dtype=torch.uint8)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    set_quantisation(tmp_path, quant_method="mxfp4")
    kind, settings = packed.class_and_config(tmp_path)
    options = TrainConfig(activation_checkpointing="none")
    weights = packed.read_weights(tmp_path)
    built: PreTrainedModel = packed.build(kind, settings, weights, options, torch.float32, None)
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}
    experts_values = built.model.layers[0].mlp.experts.gate_up_proj.detach().unique()
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]) * 2.0 ** (120 - 127)
    assert torch.equal(experts_values, torch.cat([-magnitudes[1:].flip(0), magnitudes]))
    found = _engine(tmp_path, False).score([ScoreRequest([], [5, 6, 7], [3, 4])])
    with torch.no_grad():
        expected = built.eval()(torch.tensor([[5, 6, 7]])).logits[0, -1].double().log_softmax(-1)
    np.testing.assert_allclose(found, expected[[3, 4]], atol=1e-4)
