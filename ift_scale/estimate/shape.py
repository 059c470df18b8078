"""The shape of a causal language model: its parameters and training FLOPs.

`shape_of` returns the one of a config.json; the estimators of memory, time and communication use
it. Any class of transformers works.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ift_scale.estimate.layers import Bytes, LayerShape, Weights, dense


@dataclass(frozen=True)
class FrozenLayer:
    """Elements of a decoder layer's frozen matrices that multiply a token; of `elements`, those of
    keys and values."""

    elements: float
    keys: float


@dataclass(frozen=True)
class Frozen:
    """The frozen part of a model (`train.freeze`). `layers`: each decoder layer's, from the first;
    empty if nothing is frozen."""

    parameters: int = 0
    head: bool = False
    layers: tuple[FrozenLayer, ...] = ()
    idle: int = 0
    """Number of the lowest layers that have no backward pass, because everything in and below them
    is frozen."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a causal language model. `hidden`: of the rows that the head multiplies; `vocab`:
    rows of the head. Elements, unless stated otherwise."""

    family: str
    hidden: int
    vocab: int
    tied: bool
    parameters: int
    """Number of parameters; a tied head and shared layers are counted once."""
    fused_mlp: bool
    """True if fused kernels support the layers' norms and MLPs."""
    stack: tuple[tuple[LayerShape, int], ...]
    """Kinds of decoder layers with their number. The model's last layer is of the last kind."""
    ends: LayerShape
    """Everything outside of the decoder layers, without the head's product."""
    working: tuple[Bytes, Bytes] | None = None
    """Measured bytes that the backward pass adds to what is kept: in a layer, and before it reaches
    one. None if the layers are as in `layers.dense`."""
    frozen: Frozen = Frozen()

    @classmethod
    def dense(
        cls,
        hidden: int,
        intermediate: int,
        layers: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        vocab: int,
        tied: bool,
    ) -> "ModelShape":
        """Returns a Llama of these sizes, without importing torch."""
        layer = dense(hidden, intermediate, heads, kv_heads, head_dim)
        outside = hidden + vocab * hidden * (1 if tied else 2)
        weights = Weights(outside, 2 if tied else 3, vocab * hidden, hidden)
        ends = LayerShape((), weights, None, 0.0, 0.0, hidden, 0.0)
        parameters = layers * layer.weights.parameters + outside
        return cls("llama", hidden, vocab, tied, parameters, True, ((layer, layers),), ends)

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return sum(count for _, count in self.stack)

    @property
    def trainable(self) -> int:
        """Number of parameters that are not frozen."""
        return self.parameters - self.frozen.parameters

    @property
    def idle_share(self) -> float:
        """Share of the decoder layers that have no backward pass."""
        return self.frozen.idle / self.layers if self.layers else 0.0

    @property
    def last(self) -> LayerShape:
        """The last decoder layer."""
        return self.stack[-1][0]

    @property
    def matrices(self) -> float:
        """Elements of the matrices that multiply a token, without the head: of chosen experts."""
        return sum(count * layer.elements for layer, count in self.stack) + self.ends.elements

    @property
    def pair_flops(self) -> float:
        """Forward FLOPs of a (query, key) pair, over all layers."""
        return sum(count * layer.pair_flops for layer, count in self.stack)

    @property
    def mixing_flops(self) -> float:
        """Forward FLOPs per token of convolutions and recurrences, over all layers."""
        return sum(count * layer.mixing_flops for layer, count in self.stack)

    @property
    def embedding_parameters(self) -> int:
        """Elements of the head, and of the embedding, which is the same matrix if they are tied."""
        return self.vocab * self.hidden

    @property
    def largest(self) -> int:
        """Elements of the largest weight tensor of a decoder layer."""
        return max((layer.weights.largest for layer, _ in self.stack), default=0)

    @property
    def largest_of_all(self) -> int:
        """Elements of the model's largest weight tensor."""
        return max(self.largest, self.ends.weights.largest)

    @property
    def grouped(self) -> bool:
        """True if several query heads share a key head."""
        return any(layer.repeated for layer, _ in self.stack)


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
    (Kaplan et al. 2020, 2001.08361, section 2.1); of experts, only the chosen ones count. A (query,
    key) pair takes 2 * heads * (head_dim + value_dim) forward and twice that backward. Causal
    attention has L (L + 1) / 2 pairs, not the L^2 of Chowdhery et al. 2022 (2204.02311, appendix
    B). The embedding's look-up takes none. Frozen matrices take 4 n: see `saved_by_freezing`.
    Sliding windows are not subtracted, so examples longer than a model's window are counted too
    high. Neither are elementwise recurrences added.
    """
    tokens_E = np.asarray(lengths, dtype=np.float64)
    rows_E = np.asarray(supervised_counts, dtype=np.float64)
    tokens, rows = tokens_E.sum(), rows_E.sum()
    pairs = (tokens_E * (tokens_E + 1) / 2).sum()
    last_pairs = (rows_E * tokens_E - rows_E * (rows_E - 1) / 2).sum()
    prefix_G, times_G = np.array(shared, dtype=np.float64).reshape(-1, 2).T
    saved, saved_pairs = prefix_G * (times_G - 1), prefix_G * (prefix_G + 1) / 2 * (times_G - 1)
    tokens, pairs = tokens - saved.sum(), pairs - saved_pairs.sum()
    matrices = shape.matrices * tokens
    attention = shape.pair_flops * pairs
    if pruned:
        last = shape.last
        matrices -= (last.elements - last.key_elements) * (tokens - rows)
        attention -= last.pair_flops * (pairs - last_pairs)
    mixing = shape.mixing_flops * tokens
    head = shape.embedding_parameters * rows
    whole = 6 * (matrices + head) + 3 * (attention + mixing)
    return float(whole - sum(saved_by_freezing(shape, tokens, rows, pairs, last_pairs, pruned)))


def saved_by_freezing(
    shape: ModelShape, tokens: float, rows: float, pairs: float, last_pairs: float, pruned: bool
) -> tuple[float, float, float]:
    """Returns the FLOPs (of matrices, of attention, of the head) that frozen parameters save.

    A frozen matrix of n elements has no weight gradient: 2 n less per token. A layer without a
    backward pass saves all of its backward FLOPs; layers of different kinds count as their mean.
    `pairs`, `last_pairs`: (query, key) pairs of a layer and of a pruned last layer.
    """
    frozen = shape.frozen
    matrices = attention = 0.0
    layers = max(1, shape.layers)
    for number, layer in enumerate(frozen.layers):
        is_last = number + 1 == len(frozen.layers)
        own_rows, own_pairs = (rows, last_pairs) if pruned and is_last else (tokens, pairs)
        keys, rest = layer.keys, layer.elements - layer.keys
        passes = 2
        if number < frozen.idle:
            passes = 4
            keys, pair_flops = shape.last.key_elements, shape.last.pair_flops
            rest, mixing = shape.last.elements - keys, shape.last.mixing_flops
            if not is_last:
                rest = (shape.matrices - shape.ends.elements) / layers - keys
                pair_flops, mixing = shape.pair_flops / layers, shape.mixing_flops / layers
            attention += 2 * (pair_flops * own_pairs + mixing * tokens)
        matrices += passes * (keys * tokens + rest * own_rows)
    return matrices, attention, 2 * shape.embedding_parameters * rows * frozen.head
