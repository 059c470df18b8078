"""Wrong config.json files: each is refused with its field and value, in words."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING, AutoConfig, LlamaForCausalLM

from ift_scale.cli import main
from ift_scale.engines import weight_checks
from ift_scale.errors import DataError
from ift_scale.models import config_class
from ift_scale.models.config_errors import reason
from ift_scale.models.config_file import read_config_file

_FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"first_k_dense_replace": 1, "n_routed_experts": 8},
    "falcon": {},
    "gemma3_text": {},
    "gpt2": {"n_layer": 2},
    "gpt_neox": {},
    "llama": {},
    "mamba": {},
    "mixtral": {},
    "phi3": {},
    "qwen2": {},
}
_WRONG: list[tuple[str, Any, str]] = [
    ("vocab_size", "many", "expected int, got str"),
    ("vocab_size", -64, "must be at least 1"),
    ("vocab_size", 10**30, "cannot"),
    ("tie_word_embeddings", "no", "expected bool, got str"),
    ("eos_token_id", {"a": 1}, "expected one of: int, list[int], null"),
    ("initializer_range", float("nan"), "must not be NaN"),
    ("architectures", "Llama", "must be a list"),
    ("auto_map", "x", "must be an object"),
    ("dtype", 5, "must be a string"),
    ("dtype", "bf17", "with this value"),
    ("id2label", "many", "with this value"),
    ("is_encoder_decoder", "yes", "must be true or false"),
    ("model_type", ["llama"], "must be a string"),
    ("num_hidden_layers", 10**9, "must be at most 10,000"),
    ("quantization_config", "fp8", "must be an object"),
    ("text_config", "x", "must be an object"),
]
# What the interpreter and C++ code write, and what an author would not.
_RAW = re.compile(
    r"<class|object has|operand|not iterable|unhashable|subscript|\w+Error|\.\.(?!\.)"
)


def _written(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def _refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        config_class.build(read_config_file(path), path)
    return str(caught.value)


@pytest.mark.parametrize("family", _FAMILIES)
def test_a_wrong_field_is_named_with_its_value(family: str, tmp_path: Path) -> None:
    small = _FAMILIES[family] or {"num_hidden_layers": 2}
    config_class.build({"model_type": family, **small})
    for field, value, problem in _WRONG:
        message = _refusal(_written(tmp_path, **{"model_type": family, **small, field: value}))
        assert message.startswith(f"{tmp_path}/config.json: field '{field}': "), message
        assert problem in message and f"(value: {value!r})" in message, message
        assert "Correct it, or fetch config.json again" in message
        assert not _RAW.search(message.replace(str(tmp_path), "")), message


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"hidden_act": "silu2"}, ["'hidden_act'", "did you mean 'silu'?"]),
        (
            {"rope_parameters": {"rope_type": "yarnn", "factor": 2.0, "rope_theta": 1e4}},
            ["'rope_parameters.rope_type'", "did you mean 'yarn'?"],
        ),
        (
            {"rope_scaling": {"rope_type": "yarn"}},
            ["'rope_scaling.rope_type'", "Missing required keys", "'factor'"],
        ),
        ({"hidden_size": 64, "num_attention_heads": 7}, ["'num_attention_heads'", "7"]),
        ({"num_attention_heads": 0}, ["'num_attention_heads'", "with this value", "0"]),
        ({"layer_types": ["full_attention"]}, ["num_hidden_layers` (2) must be equal"]),
    ],
)
def test_the_field_is_found_by_trial(
    fields: dict[str, Any], parts: list[str], tmp_path: Path
) -> None:
    path = _written(tmp_path, **{"model_type": "llama", "num_hidden_layers": 2, **fields})
    message = _refusal(path)
    assert all(part in message for part in parts), message


def test_a_field_of_the_text_model_is_found(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "num_hidden_layers": 2, "hidden_size": -64}
    message = _refusal(_written(tmp_path, model_type="gemma3", text_config=text))
    assert "field 'text_config.hidden_size'" in message and "(value: -64)" in message


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "\xff", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_files_that_are_not_a_json_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"not valid JSON|not a JSON object|is damaged"):
        read_config_file(tmp_path / "config.json")


def test_messages_of_the_interpreter_are_not_reasons() -> None:
    def error_of(code: str) -> Exception:
        try:
            exec(code)
        except Exception as error:
            return error
        raise AssertionError(f"{code} raised nothing")

    assert reason(error_of("1 + 'a'")) is None
    assert reason(error_of("{}['a b']")) is None
    assert reason(error_of("raise KeyError('no such rope type.')")) == "no such rope type"
    assert reason(error_of("raise AttributeError('no such attribute')")) is None


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "own", [None, {}, {"AutoConfig": None}, {"AutoConfig": None, "AutoModelForCausalLM": None}]
)
def test_a_null_in_auto_map_is_no_own_code(own: Any, trusted: bool, tmp_path: Path) -> None:
    """Neither the class nor the config's is then in the folder, whatever is trusted."""
    _written(tmp_path, model_type="llama", num_hidden_layers=1, auto_map=own)
    assert config_class.class_and_config(tmp_path, trusted)[0] is LlamaForCausalLM
    _written(tmp_path, model_type="unknown_x", num_hidden_layers=1, auto_map=own)
    with pytest.raises(DataError, match=r"'model_type': transformers .* has no such class"):
        config_class.read_config(tmp_path, trusted)


def test_a_null_leaves_the_other_own_class(tmp_path: Path) -> None:
    own = {"AutoConfig": None, "AutoModelForCausalLM": "own.Own"}
    (tmp_path / "own.py").write_text("from transformers import GemmaForCausalLM as Own\n")
    _written(tmp_path, model_type="gemma", num_hidden_layers=1, auto_map=own)
    assert config_class.class_and_config(tmp_path, True)[0].__name__ == "GemmaForCausalLM"


def test_a_config_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    """Also with the rules of AutoConfig, which takes this Mistral for a Ministral."""
    fields = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    path = _written(tmp_path, model_type="mistral", **fields)
    found = config_class.read_config(tmp_path)
    assert type(found) is type(AutoConfig.from_pretrained(path)) is CONFIG_MAPPING["ministral"]


_OWN = "from transformers import LlamaForCausalLM\n"


@pytest.mark.parametrize(
    ("code", "reference", "problem"),
    [
        (_OWN, "own.OwnForCausalLM", "own.py has no OwnForCausalLM"),
        (_OWN, "other.Own", "the folder has no other.py"),
        ("from .other import Own", "own.Own", "the folder has no other.py, which own.py imports"),
        ("def Own(:", "own.Own", "is not valid Python (line 1)"),
        ("import no_such_package", "own.Own", "packages that were not found"),
        ("from torch import no_such_name", "own.Own", "it fails in own.py, line 1"),
        ("\n1 + 'a'", "own.Own", "it fails in own.py, line 2"),
        ("raise SystemExit(3)", "own.Own", "it fails in own.py, line 1"),
        ("Own = dict", "own.Own", "Own is no PreTrainedModel"),
        (_OWN, 5, "must be 'FILE.CLASS'"),
        (_OWN, "LlamaForCausalLM", "must be 'FILE.CLASS'"),
        (_OWN, "repo--own.LlamaForCausalLM", "names code of another repository"),
    ],
)
def test_own_code_that_cannot_be_imported(
    code: str, reference: Any, problem: str, tmp_path: Path
) -> None:
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "own.py").write_text(code)
    _written(tmp_path, model_type="llama", auto_map={"AutoModelForCausalLM": reference})
    with pytest.raises(DataError) as caught:
        weight_checks.check(tmp_path, trust_remote_code=True)
    message = str(caught.value)
    assert problem in message and "field 'auto_map.AutoModelForCausalLM'" in message, message
    assert not _RAW.search(message.replace(str(tmp_path), "")), message


@pytest.mark.engine
@pytest.mark.parametrize("command", [["plan", "--model"], ["doctor"]])
def test_commands_report_the_field(command: list[str], tmp_path: Path) -> None:
    _written(tmp_path, model_type="llama", num_hidden_layers=2, rope_theta=[1])
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    result = CliRunner().invoke(main, [*command, str(tmp_path)])
    assert result.exit_code == 2 and "field 'rope_theta'" in result.output, result.output
