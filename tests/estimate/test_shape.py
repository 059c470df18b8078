"""Parameters compared with transformers' models on the meta device, FLOPs with torch's counter."""

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from ift_scale.errors import DataError
from ift_scale.estimate.shape import train_flops
from ift_scale.estimate.shape_of import shape_of

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}

# Published sizes (the models' config.json), and small ones with every option that matters.
SHAPES: list[dict[str, Any]] = [
    {
        "model_type": "llama",
        **SMALL,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "head_dim": 24,
    },
    {"model_type": "llama", **SMALL},
    {"model_type": "mistral", **SMALL, "head_dim": 8},
    {"model_type": "qwen2", **SMALL, "tie_word_embeddings": True},
    {"model_type": "qwen3", **SMALL, "attention_bias": True},
    {"model_type": "gemma", **SMALL},
    {"model_type": "gemma2", **SMALL, "attention_bias": True},
    {"model_type": "gemma3_text", **SMALL, "head_dim": 16},
    {  # Qwen/Qwen3-8B
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    {  # google/gemma-2-9b
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
    },
    {  # google/gemma-7b
        "model_type": "gemma",
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
    },
]


def _counted(config: dict[str, Any]) -> int:
    settings = copy.deepcopy(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(settings.pop("model_type"), **settings)
        )
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c['model_type']}-{c['hidden_size']}")
def test_parameters_are_those_of_the_model(config: dict[str, Any]) -> None:
    assert shape_of(config).parameters == _counted(config)


def test_a_multimodal_config_gives_its_text_model() -> None:
    """Like google/gemma-3-4b-it, which leaves most fields to transformers' defaults."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
    }
    shape = shape_of(
        {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}}
    )
    assert shape.parameters == _counted(text)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 64}, "'model_type': is missing"),
        ({"model_type": "lama"}, "has no such class .*Did you mean 'llama'"),
        (
            {"model_type": "llama99", "transformers_version": "9.1.0"},
            "'model_type': transformers 5.* has no such class; config.json was written by 9.1.0",
        ),
        (
            {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}},
            "'auto_map': the model's class is defined by the folder's .*--trust-remote-code",
        ),
        ({"model_type": "t5"}, "'is_encoder_decoder': an encoder-decoder answers"),
        ({"model_type": "vit"}, "'model_type': transformers 5.* has no causal language model"),
        (
            {"model_type": "llama", **SMALL, "num_attention_heads": 0},
            "field 'num_attention_heads': transformers 5.* cannot read it",
        ),
    ],
)
def test_a_config_without_a_causal_model_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"(?s)config.json: .*{message}"):
        shape_of(config)


def _measured_flops(config: dict[str, Any], length: int, rows: int) -> int:
    """Returns torch's count for forward and backward of an example, with all L^2 pairs."""
    settings = {k: v for k, v in config.items() if k != "model_type"}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config["model_type"], **settings), attn_implementation="eager"
    )
    ids = torch.randint(0, config["vocab_size"], (1, length))
    with FlopCounterMode(display=False) as counter:
        logits = model(
            input_ids=ids, logits_to_keep=torch.arange(length - rows, length), use_cache=False
        ).logits
        logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_flops_are_those_that_torch_counts(family: str) -> None:
    config = {"model_type": family, **SMALL, "head_dim": 16}
    shape, length, rows = shape_of(config), 48, 9
    masked_pairs = length * (length - 1) // 2
    expected = (
        train_flops(shape, [length], [rows], pruned=False) + 3 * shape.pair_flops * masked_pairs
    )
    assert _measured_flops(config, length, rows) == expected


def test_pruning_skips_the_last_layers_other_rows() -> None:
    """With n supervised rows of L, L - n rows skip queries, output projection, MLP and pairs."""
    shape, length, rows = shape_of({"model_type": "llama", **SMALL}), 40, 10
    saved = train_flops(shape, [length], [rows], pruned=False) - train_flops(
        shape, [length], [rows], pruned=True
    )
    without = length - rows
    queries, intermediate = shape.last.q_size, SMALL["intermediate_size"]
    per_row = 2 * shape.hidden * queries + 3 * shape.hidden * intermediate
    assert saved == 6 * without * per_row + 12 * queries * without * (without + 1) / 2


def test_flops_add_up_over_examples() -> None:
    shape = shape_of({"model_type": "llama", **SMALL})
    apart = train_flops(shape, [40], [10], True) + train_flops(shape, [7], [7], True)
    assert train_flops(shape, [40, 7], [10, 7], True) == apart
    assert train_flops(shape, [7], [7], True) == train_flops(shape, [7], [7], False)


def test_a_shared_prefix_is_counted_once() -> None:
    """Two examples with one prefix: the prefix alone, plus each example's own tokens with pairs."""
    shape = shape_of(SMALL | {"model_type": "llama"})
    prefix, own, rows = 30, [50, 70], [20, 40]
    whole = train_flops(shape, [prefix + tokens for tokens in own], rows, pruned=False)
    shared = train_flops(
        shape, [prefix + tokens for tokens in own], rows, pruned=False, shared=[(prefix, 2)]
    )
    assert whole - shared == pytest.approx(train_flops(shape, [prefix], [0], pruned=False))
    pruned = train_flops(shape, [80, 100], rows, pruned=True) - train_flops(
        shape, [80, 100], rows, True, [(prefix, 2)]
    )
    assert pruned == pytest.approx(train_flops(shape, [prefix], [0], pruned=True))
