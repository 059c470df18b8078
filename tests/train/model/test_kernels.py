"""The choice of an op's implementation, which changes no result."""

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ift_scale.config.file import from_dict
from ift_scale.errors import ConfigError
from ift_scale.estimate.layers import ACTIVATIONS
from ift_scale.estimate.shape_of import shape_of
from ift_scale.train import prepare
from ift_scale.train.model import kernels
from tests.train.families import CONFIGS, SIZES

ALL = ("pytorch", "triton", "liger")
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def figure(op: str, device: str = "a GPU", **medians: float) -> dict[str, Any]:
    return {
        "op": op,
        "device": device,
        "milliseconds": {name: {"p50": median} for name, median in medians.items()},
    }


def test_auto_takes_what_was_fastest_over_all_shapes() -> None:
    figures = [
        figure("rms_norm", pytorch=3, triton=1, liger=2),
        figure("rms_norm", pytorch=3, triton=4, liger=2),
        figure("swiglu", pytorch=2, triton=1),
        figure("rotary", pytorch=3, compile=1, triton=2),
        figure("linear_cross_entropy", "another", pytorch=3, triton=1),
    ]
    choice = kernels.choose("auto", "a GPU", figures, ALL)
    assert {op: c.implementation for op, c in choice.items()} == {
        "linear_cross_entropy": "liger",
        "rms_norm": "liger",
        "swiglu": "triton",
        "rotary": "pytorch",
    }
    assert "no figure" in choice["linear_cross_entropy"].reason
    assert "torch.compile" in choice["rotary"].reason
    without = kernels.choose("auto", "a GPU", figures, ("pytorch", "triton"))
    assert without["rms_norm"].implementation == "triton"
    assert without["linear_cross_entropy"].implementation == "pytorch"


def test_without_figures_auto_takes_liger_if_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for installed, expected in ((True, "liger"), (False, "pytorch")):
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name, found=installed: found or name != "liger_kernel" or None,
        )
        choice = kernels.choose("auto", "a GPU", [], kernels.available("cuda"))
        assert {c.implementation for c in choice.values()} == {expected}
        assert {
            c.implementation
            for c in kernels.choose("auto", "cpu", [], kernels.available("cpu")).values()
        } == {"pytorch"}


@pytest.mark.parametrize("setting", ["triton", "liger"])
def test_a_setting_that_cannot_run_here_is_refused(setting: Any) -> None:
    with pytest.raises(ConfigError, match=f"train.kernels: {setting} needs a CUDA device"):
        kernels.choose(setting, "cpu", [], kernels.available("cpu"))
    assert {c.implementation for c in kernels.choose(setting, "a GPU", [], ALL).values()} == {
        setting
    }


def test_the_stored_figures_can_be_chosen_from() -> None:
    choice = kernels.choose("auto", "cpu", kernels.stored_figures(), kernels.available("cpu"))
    assert set(choice) == set(kernels.OPS) and {c.implementation for c in choice.values()} == {
        "pytorch"
    }
    assert kernels.loss_function(choice) is kernels.implementation("linear_cross_entropy", choice)


def results(model: Any, ids_1T: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(input_ids=ids_1T).logits
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"]
)
def test_apply_changes_neither_logits_nor_gradients(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **SMALL), attn_implementation="eager"
    )
    for name, parameter in model.named_parameters():
        if "norm" in name:  # not at its neutral value, to detect a missing or extra offset
            torch.nn.init.normal_(parameter, 0.3, 0.5)
    ids_1T = torch.randint(1, 97, (1, 11))
    logits, gradients = results(model, ids_1T)
    modeling = sys.modules[type(model).__module__]
    # Restores the function after the test.
    monkeypatch.setattr(modeling, "apply_rotary_pos_emb", modeling.apply_rotary_pos_emb)
    kernels.apply(model, kernels.choose("pytorch", "cpu", [], ("pytorch",)))
    replaced = [module for module in model.modules() if "forward" in vars(module)]
    norms = 2 * {"gemma2": 4, "gemma3_text": 6, "qwen3": 4}.get(model_type, 2) + 1
    assert len(replaced) == norms + 2
    again, gradients_again = results(model, ids_1T)
    torch.testing.assert_close(again, logits, rtol=0, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradients_again[name],
            gradient,
            rtol=1e-4,
            atol=1e-5,
            msg=lambda m, name=name: f"{name}: {m}",
        )


def test_a_copy_computes_with_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL))
    modeling = sys.modules[type(model).__module__]
    monkeypatch.setattr(modeling, "apply_rotary_pos_emb", modeling.apply_rotary_pos_emb)
    kernels.apply(model, kernels.choose("pytorch", "cpu", [], ("pytorch",)))
    twin = copy.deepcopy(model)
    ids_1T = torch.arange(1, 8)[None]
    before = twin(input_ids=ids_1T).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(input_ids=ids_1T).logits, before)


def test_unknown_models_and_modules() -> None:
    model: Any = torch.nn.Module()
    model.config = type("Config", (), {"model_type": "nobody"})
    assert kernels.apply(model, kernels.choose("pytorch", "cpu", [], ALL)) == [
        "models of the type nobody"
    ]
    kernels.check("auto", model)
    with pytest.raises(
        ConfigError,
        match=r"triton cannot compute models of the type nobody; known types: gemma, .*llama",
    ):
        kernels.check("triton", model)
    model.config.model_type = "llama"
    model.norm = type("OtherRMSNorm", (torch.nn.Module,), {})()
    with pytest.raises(ConfigError, match="OtherRMSNorm"):
        kernels.check("liger", model)


OTHERS = ("gelu", "gelu_new", "quick_gelu", "relu", "relu2", "gelu_fast", "tanh")


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("activation", [*OTHERS, *ACTIVATIONS])
def test_an_unsupported_activation_is_left_to_the_model(
    family: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` and `pytorch` train it with transformers' code; kernels set by name are refused."""
    field = "hidden_activation" if family in ("gemma2", "gemma3_text") else "hidden_act"
    settings = {name: value for name, value in CONFIGS[family].to_dict().items() if name in SIZES}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        type(CONFIGS[family])(**settings | {field: activation})
    )
    activation = getattr(model.config, field)  # Gemma uses "gelu" for the tanh form
    ids = torch.arange(12)[None]
    logits, gradients = results(model, ids)
    modeling = sys.modules[type(model).__module__]
    # Restores the function after the test.
    monkeypatch.setattr(modeling, "apply_rotary_pos_emb", modeling.apply_rotary_pos_emb)
    own = kernels.apply(model, kernels.choose("auto", "cpu", [], ("pytorch",)))
    found = results(model, ids)
    torch.testing.assert_close(found[0], logits)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6)
    kernels.check("auto", model)
    kernels.check("pytorch", model)
    assert shape_of(model.config.to_dict()).fused_mlp == (activation in ACTIVATIONS)
    if activation in ACTIVATIONS:
        assert own == []
        kernels.check("triton", model)
    else:
        (left,) = own
        assert "MLP with the activation" in left
        with pytest.raises(
            ConfigError,
            match=r"train\.kernels: triton cannot compute .*MLP with the activation .* to auto",
        ):
            kernels.check("triton", model)


def test_a_kernel_that_cannot_compute_the_model_is_refused_before_the_launch(
    tmp_path: Path, world_model: Path
) -> None:
    shutil.copytree(world_model, tmp_path / "model")
    (tmp_path / "hosts").write_text("node-a slots=1\n")
    config = from_dict(
        {
            "output_dir": str(tmp_path),
            "train": {"kernels": "triton", "hostfile": str(tmp_path / "hosts")},
        }
    )
    prepare.check_model_settings(config, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "relu"}))
    with pytest.raises(
        ConfigError, match="triton cannot compute LlamaMLP with the activation ReLU"
    ):
        prepare.check_model_settings(config, tmp_path / "model")
    local = from_dict({"output_dir": str(tmp_path), "train": {"kernels": "liger"}})
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="liger needs a CUDA device"):
            prepare.check_model_settings(local, world_model)
