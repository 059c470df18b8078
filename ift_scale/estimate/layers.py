"""Sizes of one decoder layer: its matrices, its attention, and the bytes its backward pass needs.

`walk` measures them on any model of transformers. `dense` computes them for the most common layer:
RMS norms, rotary positions, and a gated MLP of three matrices.
"""

from dataclasses import dataclass

ACTIVATIONS = ("silu", "swish", "gelu_pytorch_tanh")
"""Activations of a gated MLP that fused kernels support, by transformers' names."""

KERNEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
"""Model types whose norms and MLPs fused kernels replace (`train/model/kernels.py`)."""


@dataclass(frozen=True)
class Product:
    """A weight matrix that multiplies tokens; or `matrices` equal ones, of which each token's rows
    pass through some (experts).

    `rows`: rows per token that are multiplied, over all of the matrices: 1 for a plain layer, the
    number of chosen experts for experts. `keys`: computes keys or values, which a pruned last layer
    needs for all tokens.
    """

    inputs: int
    outputs: int
    rows: float = 1.0
    matrices: int = 1
    keys: bool = False

    @property
    def elements(self) -> float:
        """Elements that multiply a token: half of its FLOPs in the forward pass."""
        return self.inputs * self.outputs * self.rows


@dataclass(frozen=True)
class Attention:
    """Heads of softmax attention. `head_dim`: of queries and keys; `value_dim`: of values."""

    heads: float
    kv_heads: float
    head_dim: float
    value_dim: float

    @property
    def q_size(self) -> float:
        """Elements of a token's queries."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> float:
        """Elements of a token's keys (or values)."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Bytes:
    """Bytes per token that depend on the size of an element and on the example's length.

    Parts that scale with the element's size and parts that do not (float32 copies, masks); each per
    token, and per (query, key) pair of an attention that holds its whole matrix.
    """

    element: float
    fixed: float = 0.0
    pair_element: float = 0.0
    pair_fixed: float = 0.0

    def of(self, element: int, length: float) -> float:
        """Returns bytes per token, for elements of `element` bytes in examples of `length`."""
        return (
            self.element * element
            + self.fixed
            + length * (self.pair_element * element + self.pair_fixed)
        )


@dataclass(frozen=True)
class SavedBytes:
    """Measured bytes that a layer keeps for its backward pass.

    `whole`: without recomputation. `outputs`: of matrix products and attention, which selective
    checkpointing keeps. `entering`: its input, which every checkpointing keeps.
    """

    whole: Bytes
    outputs: Bytes
    entering: Bytes


@dataclass(frozen=True)
class Weights:
    """Number of parameters, of weight tensors, elements of the largest tensor, and of those that
    ZeRO-3 keeps whole: norms and biases."""

    parameters: int
    tensors: int
    largest: int
    small: int


@dataclass(frozen=True)
class LayerShape:
    """One layer. Elements per token, unless they are of weights."""

    products: tuple[Product, ...]
    weights: Weights
    attention: Attention | None
    pair_flops: float
    """Forward FLOPs of a (query, key) pair, over all heads."""
    mixing_flops: float
    """Forward FLOPs per token of convolutions and recurrences."""
    normed: float
    """Elements that pass through norms, apart from those of `head_norms`."""
    activated: float
    """Elements that pass through the MLP's activation."""
    head_norms: bool = False
    """True if queries and keys have a norm as well."""
    saved: SavedBytes | None = None
    """None for a layer as in `dense`, whose bytes `activations` counts."""

    @property
    def elements(self) -> float:
        """Elements of the matrices that multiply a token."""
        return sum(product.elements for product in self.products)

    @property
    def key_elements(self) -> float:
        """The same, of keys and values only."""
        return sum(product.elements for product in self.products if product.keys)

    @property
    def q_size(self) -> float:
        """Elements of a token's queries, 0 without attention."""
        return self.attention.q_size if self.attention else 0

    @property
    def kv_size(self) -> float:
        """Elements of a token's keys (or values), 0 without attention."""
        return self.attention.kv_size if self.attention else 0

    @property
    def repeated(self) -> float:
        """Elements that are added to a token's keys and values by repeating them for every head."""
        if self.attention is None:
            return 0
        more = self.attention.heads - self.attention.kv_heads
        return more * (self.attention.head_dim + self.attention.value_dim)


def pair_flops(attention: Attention) -> float:
    """Returns the forward FLOPs of a (query, key) pair: its score, and its value times weight."""
    return 2 * attention.heads * (attention.head_dim + attention.value_dim)


def dense(
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    norms: int = 2,
    head_norms: bool = False,
) -> LayerShape:
    """Returns a layer with `norms` RMS norms of its hidden states, rotary positions, projections of
    queries, keys, values and output, and a gated MLP of three matrices.

    `head_norms`: queries and keys have a norm, whose weights are not counted.
    """
    q, kv, i = heads * head_dim, kv_heads * head_dim, intermediate
    products = (
        Product(hidden, kv, keys=True),
        Product(hidden, kv, keys=True),
        Product(hidden, q),
        Product(q, hidden),
        Product(hidden, i),
        Product(hidden, i),
        Product(i, hidden),
    )
    matrices = hidden * (2 * q + 2 * kv + 3 * i)
    attention = Attention(heads, kv_heads, head_dim, head_dim)
    return LayerShape(
        products,
        Weights(
            parameters=matrices + norms * hidden,
            tensors=len(products) + norms,
            largest=hidden * max(i, q),
            small=norms * hidden,
        ),
        attention=attention,
        pair_flops=pair_flops(attention),
        mixing_flops=0.0,
        normed=norms * hidden,
        activated=i,
        head_norms=head_norms,
    )
