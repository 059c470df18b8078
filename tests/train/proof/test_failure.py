"""Reasons for failed passes name the module and the cause, not Python's message."""

from typing import Any

import pytest
import torch
from transformers import (
    ApertusConfig,
    ApertusForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from ift_scale.train.model.attention import PathNotSupported
from ift_scale.train.proof.failure import in_words
from ift_scale.train.proof.prove import prove


def test_a_position_table_that_is_too_short() -> None:
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "vocab_size": 32}
    settings = OPTConfig(
        **sizes, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8
    )
    with pytest.raises(IndexError) as caught:
        OPTForCausalLM(settings)(input_ids=torch.zeros(1, 20, dtype=torch.long))
    assert in_words(caught.value) == (
        "its forward pass raises IndexError in model.decoder.embed_positions"
        " (OPTLearnedPositionalEmbedding): its position table has 10 rows"
    )


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (
            ApertusForCausalLM,
            ApertusConfig(),
            "AttributeError in layers.1 (ApertusDecoderLayer): ApertusDecoderLayer has no"
            " input_layernorm",
        ),
        (BloomForCausalLM, BloomConfig(), "BloomForCausalLM does not use transformers' attention"),
        (CohereForCausalLM, CohereConfig(), "it selects rows that do not exist"),
        (
            DeepseekV3ForCausalLM,
            DeepseekV3Config(),
            "its last layer is not built like Llama's (the part whose in_features is used does not"
            " exist)",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_why_a_path_is_not_possible(kind: Any, settings: Any, words: str) -> None:
    reason = prove(kind, settings).verdicts[0].reason
    assert reason.startswith("not possible: ") and reason.endswith(words)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("rope"), "KeyError: it has no entry 'rope'"),
        (
            RuntimeError("The size of tensor a (24) must match the size of tensor b (83) at"),
            "RuntimeError: sizes 24 and 83 do not match",
        ),
        (
            TypeError("_record() missing 1 required positional argument: 'mask'"),
            "TypeError: it passes other arguments to its attention or rotary embedding",
        ),
        (PathNotSupported("its attention has alibi"), "its attention has alibi"),
    ],
)
def test_causes(error: BaseException, words: str) -> None:
    assert in_words(error) == words
