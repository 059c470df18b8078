"""Shapes of published models, and which of them, with how many tokens and what checkpointing, one card holds."""

from dataclasses import dataclass, field
from typing import Any

from ift_scale.estimate.memory import GIB

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    "1b": {  # Llama 3.2 1B
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "3b": {  # Llama 3.2 3B
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "7b": {  # LLaMA-2-7B
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32_000,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class Case:
    """A shape to train, with the settings under which it is measured. `layers`: of its first so many layers only."""

    shape: str
    tokens: int = 16_384
    """Tokens of a micro-batch, at most."""
    checkpointing: str = "none"
    layers: int | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    """Settings of `TrainConfig` that differ from those of the other cases; they become part of the case's name."""

    @property
    def sizes(self) -> dict[str, Any]:
        found = SHAPES[self.shape]
        return found if self.layers is None else found | {"num_hidden_layers": self.layers}

    @property
    def name(self) -> str:
        return self.shape if self.layers is None else f"{self.shape}, {self.layers} layers"


def first(card_bytes: float) -> list[Case]:
    """1B, and 7B whole on a card of about 140 GiB; a slice of its layers, which computes the same per layer, on one of about 80."""
    found = [Case("1b")]
    if card_bytes >= 136 * GIB:
        found.append(Case("7b", 4096, "selective"))
    elif card_bytes >= 76 * GIB:
        found.append(Case("7b", 8192, "selective", layers=12))
    return found


def rest(card_bytes: float) -> list[Case]:
    """1B under other settings, one at a time, and 3B whole where it fits."""
    changes: list[dict[str, Any]] = [
        {"kernels": "pytorch"},
        {"kernels": "triton"},
        {"compile": True},
        {"activation_checkpointing": "selective"},
        {"activation_checkpointing": "full"},
        {"zero_stage": 3},
        {"optimizer": "fused_adam"},
    ]
    large = [Case("3b", 4096, "selective")] if card_bytes >= 76 * GIB else []
    return [*large, *(Case("1b", changes=change) for change in changes)]
