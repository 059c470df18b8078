"""Frozen parameter groups: which parameters patterns name, what is refused, and FLOPs saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ift_scale.config import TrainConfig
from ift_scale.errors import ConfigError
from ift_scale.estimate import flops, memory
from ift_scale.estimate.flops import BatchShape, OpCounter
from ift_scale.estimate.memory import Setting, Workload
from ift_scale.estimate.shape import train_flops
from ift_scale.estimate.shape_of import shape_of
from ift_scale.models import config_class
from ift_scale.train.frozen import with_frozen
from ift_scale.train.model import freeze

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA: dict[str, Any] = {"model_type": "llama", **SIZES, "tie_word_embeddings": False}


def _names(fields: dict[str, Any], *patterns: str) -> set[str]:
    return set(freeze.resolve(config_class.build(fields), patterns).names)


def test_groups_are_found_by_the_modules() -> None:
    of_layer = {"q_proj", "k_proj", "v_proj", "o_proj"}
    attention = {f"model.layers.1.self_attn.{name}.weight" for name in of_layer}
    norms = {f"model.layers.1.{n}_layernorm.weight" for n in ("input", "post_attention")}
    mlp = {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert _names(LLAMA, "attention:1") == attention
    assert _names(LLAMA, "mlp:1-1") == mlp
    assert _names(LLAMA, "norms:1") == norms
    assert _names(LLAMA, "layers:1") == attention | norms | mlp
    assert len(_names(LLAMA, "norms")) == 2 * 4 + 1
    assert _names(LLAMA, "mlp:2-") == _names(LLAMA, "mlp:2", "mlp:3")
    assert _names(LLAMA, "embeddings", "head") == {"model.embed_tokens.weight", "lm_head.weight"}
    assert _names(LLAMA, "*.[kv]_proj.*") == {
        f"model.layers.{i}.self_attn.{name}_proj.weight" for i in range(4) for name in "kv"
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96},
        {"model_type": "opt", "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 80}
        | {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96},
        {"model_type": "qwen3_moe", **SIZES, "num_experts": 4, "moe_intermediate_size": 32},
        {"model_type": "gpt_neox", **SIZES},
    ],
    ids=lambda fields: fields["model_type"],
)
def test_groups_cover_the_layers_of_other_families(fields: dict[str, Any]) -> None:
    parts = [_names(fields, f"{name}:0") for name in ("attention", "mlp", "norms")]
    whole = _names(fields, "layers:0")
    assert all(parts) and set().union(*parts) == whole
    assert not parts[0] & parts[1]
    assert all("norm" in name or ".ln_" in name for name in parts[2])


def test_a_tied_matrix_is_frozen_as_both() -> None:
    tied = LLAMA | {"tie_word_embeddings": True}
    found = freeze.resolve(config_class.build(tied), ["lm_head.weight"])
    assert found.names == {"model.embed_tokens.weight"} and found.tied
    assert "embeddings and head are one matrix" in str(found)
    assert not freeze.resolve(config_class.build(LLAMA), ["head"]).tied


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["*.wq.*"], r"freeze\[0\]: '\*.wq.\*' matches no parameter.*model.layers.\*.self_attn"),
        (["norms", "mpl:0-1"], r"freeze\[1\]: 'mpl:0-1' matches no parameter.*groups embeddings"),
        (["mlp:2-9"], "'mlp:2-9' names layers that do not exist: the model has layers 0 to 3"),
        (["*"], "freezes all 39 parameters of the model, so nothing is left to train"),
        (["layers", "embeddings", "head", "norms"], "freezes all 39 parameters"),
    ],
)
def test_what_matches_nothing_or_everything_is_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        freeze.resolve(config_class.build(LLAMA), patterns)


def _measured_flops(patterns: list[str], length: int, rows: int) -> float:
    """Counts a forward and backward pass of one example with the head on `rows` rows."""
    model = config_class.build(LLAMA)
    model.set_attn_implementation("eager")
    freeze.apply(model, patterns)
    with FlopCounterMode(display=False) as counter:
        logits = model(
            torch.zeros(1, length, dtype=torch.long, device="meta"), logits_to_keep=rows
        ).logits
        logits.sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    "patterns",
    [["mlp:1-2"], ["attention", "head"], ["embeddings", "layers:0-1"], ["embeddings", "layers"]],
    ids=str,
)
def test_flops_are_those_of_torchs_counter(tmp_path: Path, patterns: list[str]) -> None:
    """Differences of two runs, because eager attention computes the masked half as well."""
    shape = shape_of(LLAMA)
    model = config_class.build(LLAMA)
    frozen = freeze.frozen_shape(shape, model, patterns)
    length, rows = 40, 7
    saved = _measured_flops([], length, rows) - _measured_flops(patterns, length, rows)
    computed = [train_flops(one, [length], [rows], False) for one in (shape, frozen)]
    # Of an idle layer, the masked half of its attention's backward pass is saved as well.
    masked = frozen.frozen.idle * shape.last.pair_flops * 2 * (length * (length - 1) / 2)
    # The first layer with a backward pass needs no gradient of its queries', keys' and values'
    # input if its norm is frozen; here it never is.
    assert computed[0] - computed[1] == pytest.approx(saved - masked, rel=1e-9)
    counter = OpCounter(frozen, 4, fused=False, pruned=True, on_gpu=False)
    batch = BatchShape((40.0, 30.0), (7.0, 9.0))
    ops = [*counter.forward(batch), *counter.backward(batch), *counter.head(batch)]
    assert flops.flops(ops) == pytest.approx(train_flops(frozen, [40, 30], [7, 9], True))


def test_frozen_parameters_have_no_gradient_and_no_optimizer_state() -> None:
    shape = shape_of(LLAMA)
    frozen = freeze.frozen_shape(shape, config_class.build(LLAMA), ["embeddings", "layers:0-1"])
    work = [Workload(one, 2, True, True, 256, 64) for one in (shape, frozen)]
    for stage in (1, 2, 3):
        whole, less = (memory.estimate(w, Setting(stage, "none", "none")) for w in work)
        share = frozen.trainable / shape.parameters
        assert less.weights == whole.weights
        assert less.gradients == pytest.approx(share * whole.gradients)
        assert less.optimizer == pytest.approx(share * whole.optimizer)
        assert less.activations < 0.6 * whole.activations and less.total < whole.total


def test_plan_and_training_see_the_same_shape(tmp_path: Path, world_model: Path) -> None:
    train = TrainConfig(freeze=["embeddings"])
    file = world_model / "config.json"
    found, line = with_frozen(None, file, train)
    assert found is None and line is not None and "1 frozen parameters" in line
    shape = shape_of({"model_type": "llama", **SIZES})
    assert with_frozen(shape, file, TrainConfig()) == (shape, None)
