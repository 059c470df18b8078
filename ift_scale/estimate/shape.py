"""The shape of a decoder from a Hugging Face config.json: its parameters and its training FLOPs.

In: the dict of a config.json. Out: a `ModelShape`, whose numbers need neither torch nor weights.
All supported families are decoders with RMS norms, rotary positions and a gated MLP of three
matrices. Their differences are in `_FAMILIES`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ift_scale.errors import DataError, Place, did_you_mean


@dataclass(frozen=True)
class _FamilyDefaults:
    """What a config.json leaves to the model's code, from transformers 5.19,
    models/*/{configuration,modeling}_*.py."""

    norms_per_layer: int = 2
    head_norms: bool = False
    """True if queries and keys have a norm per head."""
    qkv_bias: bool | None = None
    """None: by the config's `attention_bias`, which also adds one to the output projection."""
    tied: bool = False
    """Default of `tie_word_embeddings`."""
    head_dim: int | None = None
    """Default of `head_dim`; None: hidden size / heads."""
    activation: str = "hidden_act"
    """Field with the MLP's activation."""
    defaults: tuple[tuple[str, int], ...] = ()
    """Defaults of fields that published config.json files omit."""


_FAMILIES = {
    "llama": _FamilyDefaults(),
    "mistral": _FamilyDefaults(qkv_bias=False),
    "qwen2": _FamilyDefaults(qkv_bias=True),
    "qwen3": _FamilyDefaults(head_norms=True, head_dim=128),
    "gemma": _FamilyDefaults(tied=True, head_dim=256),
    "gemma2": _FamilyDefaults(
        norms_per_layer=4, tied=True, head_dim=256, activation="hidden_activation"
    ),
    "gemma3_text": _FamilyDefaults(
        norms_per_layer=4,
        head_norms=True,
        tied=True,
        head_dim=256,
        activation="hidden_activation",
        defaults=(("num_attention_heads", 8), ("num_key_value_heads", 4), ("vocab_size", 262_208)),
    ),
}


# Activations of a gated MLP that fused kernels support, by transformers' names.
ACTIVATIONS = ("silu", "swish", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder. `hidden` and `intermediate` in elements, `vocab` in embedding rows."""

    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    norms_per_layer: int = 2
    head_norms: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    fused_mlp: bool = True
    """True if fused kernels support its activation."""

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], source: str | Path = "config.json"
    ) -> "ModelShape":
        """Returns the shape that a config.json describes; for multimodal models, the text model's.

        Raises DataError, located at `source`, for an unknown family or a missing field.
        """
        if isinstance(config.get("text_config"), Mapping):
            config = {"model_type": "gemma3_text", **config["text_config"]}
        name = config.get("model_type")
        if name not in _FAMILIES:
            remedy = did_you_mean(str(name), _FAMILIES)
            raise DataError(
                Place(source, field="model_type"),
                "not a family with a known shape",
                remedy,
                name,
            )
        family = _FAMILIES[name]

        def size(field: str, default: int | None = None) -> int:
            value = config.get(field) or dict(family.defaults).get(field) or default
            if not isinstance(value, int):
                raise DataError(
                    Place(source, field=field),
                    f"missing in a {name} model",
                    "Give the complete config.json",
                    value,
                )
            return value

        hidden, heads = size("hidden_size"), size("num_attention_heads")
        bias = bool(config.get("attention_bias", False)) and family.qkv_bias is None
        return cls(
            family=name,
            hidden=hidden,
            intermediate=size("intermediate_size"),
            layers=size("num_hidden_layers"),
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", family.head_dim or hidden // heads),
            vocab=size("vocab_size"),
            tied=bool(config.get("tie_word_embeddings", family.tied)),
            norms_per_layer=family.norms_per_layer,
            head_norms=family.head_norms,
            qkv_bias=bias or bool(family.qkv_bias),
            output_bias=bias,
            fused_mlp=config.get(family.activation, ACTIVATIONS[0]) in ACTIVATIONS,
            mlp_bias=name == "llama" and bool(config.get("mlp_bias", False)),
        )

    @property
    def q_size(self) -> int:
        """Elements of a token's queries in one layer."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of a token's keys (or values) in one layer."""
        return self.kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Elements of one layer's matrices: queries, output, keys, values, and the MLP's three."""
        return self.hidden * (2 * self.q_size + 2 * self.kv_size + 3 * self.intermediate)

    @property
    def layer_parameters(self) -> int:
        """All parameters of one layer."""
        norms = self.norms_per_layer * self.hidden + self.head_norms * 2 * self.head_dim
        biases = self.qkv_bias * (self.q_size + 2 * self.kv_size) + self.output_bias * self.hidden
        return (
            self.layer_matrices
            + norms
            + biases
            + self.mlp_bias * (2 * self.intermediate + self.hidden)
        )

    @property
    def embedding_parameters(self) -> int:
        """Elements of the embedding, and of the head, which is the same matrix if they are tied."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied head is counted once."""
        return (
            self.layers * self.layer_parameters
            + self.hidden
            + self.embedding_parameters * (1 if self.tied else 2)
        )


def train_flops(
    shape: ModelShape,
    lengths: Sequence[int],
    supervised_counts: Sequence[int],
    pruned: bool,
    shared: Sequence[tuple[int, int]] = (),
) -> float:
    """Returns the FLOPs of matrix products in the forward and backward pass, without recomputation.

    `lengths`: computed tokens of each example (those after its last supervised row are not
    computed). `supervised_counts`: rows of each example that predict a supervised token, assumed to
    be its last ones. `pruned`: the last layer computes queries, attention rows, output projection
    and MLP for supervised rows only. `shared`: (tokens, examples) of each prefix that is computed
    once for several examples, and is included in their `lengths`.

    A product of a token with a matrix of n elements takes 2 n FLOPs forward and 4 n backward
    (Kaplan et al. 2020, 2001.08361, section 2.1). A (query, key) pair takes 4 * heads * head_dim
    forward and twice that backward. Causal attention has L (L + 1) / 2 pairs, not the L^2 of
    Chowdhery et al. 2022 (2204.02311, appendix B). The embedding's look-up takes none. Sliding
    windows are not subtracted, so examples longer than a model's window are counted too high.
    """
    tokens_E = np.asarray(lengths, dtype=np.float64)
    rows_E = np.asarray(supervised_counts, dtype=np.float64)
    tokens, rows = tokens_E.sum(), rows_E.sum()
    pairs = (tokens_E * (tokens_E + 1) / 2).sum()
    keys_and_values = 2 * shape.hidden * shape.kv_size
    last_pairs, last_rows = (rows_E * tokens_E - rows_E * (rows_E - 1) / 2).sum(), rows
    prefix_G, times_G = np.array(shared, dtype=np.float64).reshape(-1, 2).T
    saved, saved_pairs = prefix_G * (times_G - 1), prefix_G * (prefix_G + 1) / 2 * (times_G - 1)
    tokens, pairs = tokens - saved.sum(), pairs - saved_pairs.sum()
    if not pruned:
        last_pairs, last_rows = pairs, tokens
    matrices = (shape.layers - 1) * shape.layer_matrices * tokens
    matrices += keys_and_values * tokens + (shape.layer_matrices - keys_and_values) * last_rows
    attention = 2 * shape.q_size * ((shape.layers - 1) * pairs + last_pairs)
    return float(6 * (matrices + attention + shape.embedding_parameters * rows))
