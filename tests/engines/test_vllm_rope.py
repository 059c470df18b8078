"""Rotary frequencies that depend on a row's length: vLLM has one set, so lengths are limited."""

from typing import Any

import pytest

from ift_scale.errors import ConfigError

pytest.importorskip("torch")
from ift_scale.engines.vllm import safe_max_model_len

LONG = {"rope_type": "longrope", "long_factor": [2.0], "short_factor": [1.0]}


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({}, None, None),
        ({"rope_parameters": {"rope_type": "default"}}, 100, 100),
        (
            {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 8}},
            None,
            None,
        ),
        ({"rope_scaling": LONG, "original_max_position_embeddings": 4096}, None, 4096),
        (
            {"rope_scaling": {"type": "su", **LONG}, "original_max_position_embeddings": 4096},
            1000,
            1000,
        ),
        ({"rope_parameters": LONG | {"original_max_position_embeddings": 512}}, None, 512),
        (
            {
                "text_config": {
                    "rope_parameters": {"full": LONG | {"original_max_position_embeddings": 64}}
                }
            },
            None,
            64,
        ),
    ],
)
def test_prompts_end_where_the_short_frequencies_do(
    settings: dict[str, Any], given: int | None, expected: int | None
) -> None:
    assert safe_max_model_len(settings, given) == expected


def test_lengths_with_other_frequencies_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"max_model_len: 4097 exceeds LongRoPE's limit of 4096 tokens.*engine: transformers",
    ) as caught:
        safe_max_model_len({"rope_scaling": LONG, "original_max_position_embeddings": 4096}, 4097)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("rope", [{"type": "dynamic", "factor": 2.0}, {"rope_type": "dynamic"}])
def test_dynamic_scaling_is_refused(rope: dict[str, Any]) -> None:
    for settings in (
        {"rope_scaling": rope},
        {"rope_parameters": {"sliding": {"rope_type": "default"}, "full": rope}},
    ):
        with pytest.raises(ConfigError, match="vLLM scales the rotary frequencies of every row"):
            safe_max_model_len(settings, None)
