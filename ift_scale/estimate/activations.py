"""Bytes of activations kept from the forward to the backward pass, and the extra bytes of the
backward pass and the loss.

They are counted from what each operation saves (the method of Korthikanti et al. 2022, 2205.05198,
section 4, applied to these layers). In the formulas, a is the size of an element in bytes (2 in
bfloat16, 4 in float32), and h, q, k, i are the elements of a token's hidden state, queries, keys
and MLP.

"Fused" norms save only their input and a fused SwiGLU only its two inputs, as in Liger-Kernel, our
Triton kernels and torch.compile. Plain PyTorch also saves a norm's float32 copy and normalised
value, and the activated gate. Attention is a flash kernel, which saves its inputs, its output and
one float32 number per head. "Repeated" is grouped attention by a kernel that needs as many key
heads as query heads: it saves repeated keys and values, q elements of each instead of k.

Tests compare these counts with the bytes actually held on a CPU. Workspaces of GPU kernels are not
counted.
"""

from dataclasses import dataclass
from typing import Literal

from ift_scale.estimate.layers import LayerShape
from ift_scale.estimate.shape import ModelShape

Checkpointing = Literal["none", "selective", "full"]

# Maximum bytes of float32 logits in the linear cross-entropy kernels; a test compares the values.
GPU_LOGITS, CPU_LOGITS = 256 * 2**20, 64 * 2**20


@dataclass(frozen=True)
class Precision:
    """How activations are stored.

    `element`: bytes of an activation. `fused`: norms and SwiGLU save only their inputs. `repeated`:
    keys and values are repeated for grouped attention.
    """

    element: int
    fused: bool
    on_gpu: bool = True
    repeated: bool = False
    longest: int = 0
    """Tokens of the longest example, for attention that saves its whole matrix."""


def _norm(shape: ModelShape, precision: Precision) -> int:
    """Returns saved bytes per element of a norm's input, excluding its output.

    Gemma's norms multiply by their weight in float32.
    """
    if precision.fused:
        return precision.element
    return 4 + (4 if shape.family.startswith("gemma") else precision.element)


def whole_layer(shape: ModelShape, layer: LayerShape, precision: Precision) -> float:
    """Returns bytes per token that one layer saves without recomputation.

    Measured ones if the shape has them, and the repeated keys and values. Otherwise, norms: n_norms
    * norm(h) [+ norm(q + k)]. Inputs of the linear layers: a (2 h + i). Attention: a (2 q + 2 k) +
    4 heads; with repeated keys and values 4 a q + 4 heads. SwiGLU: gate, up and, if not fused, the
    activated gate: 2 or 3 times a i.
    """
    a, h, i = precision.element, shape.hidden, layer.activated
    repeated = precision.repeated * layer.repeated
    if layer.saved is not None:
        return layer.saved.whole.of(a, precision.longest) + a * repeated
    assert layer.attention is not None
    normed = layer.normed + layer.head_norms * (layer.q_size + layer.kv_size)
    attention = 2 * layer.q_size + 2 * layer.kv_size + repeated
    swiglu = 2 * i if precision.fused else 3 * i
    linear = 2 * h + i + attention + swiglu
    return normed * _norm(shape, precision) + a * linear + 4 * layer.attention.heads


def kept_of_layer(
    shape: ModelShape, layer: LayerShape, precision: Precision, checkpointing: Checkpointing
) -> float:
    """Returns bytes per token that one layer holds from its forward to its backward pass.

    full: its input, a h. selective: also the outputs of its matrix products and of attention, which
    are not recomputed: a (3 h + 2 q + 2 k + 2 i) + 4 heads in total for a layer as in
    `layers.dense`.
    """
    a = precision.element
    if checkpointing == "none":
        return whole_layer(shape, layer, precision)
    if layer.saved is not None:
        entering = layer.saved.entering.of(a, precision.longest)
        outputs = layer.saved.outputs.of(a, precision.longest)
        return entering + (outputs if checkpointing == "selective" else 0)
    if checkpointing == "full":
        return a * shape.hidden
    assert layer.attention is not None
    products = 2 * (shape.hidden + layer.q_size + layer.kv_size + layer.activated)
    return a * (shape.hidden + products) + 4 * layer.attention.heads


def working(shape: ModelShape, precision: Precision, checkpointing: Checkpointing) -> float:
    """Returns bytes per token that the backward pass temporarily adds to what is kept.

    The peak is in a layer or in the final norm. A layer: what is recomputed, and the gradients in
    its MLP, a (2 h + i), or what was measured. A norm's gradient in plain PyTorch needs five
    float32 copies of its input.
    """
    a, h = precision.element, shape.hidden
    before_layers: float = 3 * a * h if precision.fused else 20 * h
    if shape.working is not None:
        before_layers = shape.working[1].of(a, precision.longest)

    def of_layer(layer: LayerShape) -> float:
        again = 0.0
        if checkpointing != "none":
            again = whole_layer(shape, layer, precision) + a * h
            again -= kept_of_layer(shape, layer, precision, checkpointing)
        if shape.working is None:
            return again + a * (2 * h + layer.activated)
        return again + shape.working[0].of(a, precision.longest)

    return max(before_layers, *(of_layer(layer) for layer, _ in shape.stack))


def kept(shape: ModelShape, precision: Precision, checkpointing: Checkpointing) -> float:
    """Returns bytes per token at the end of the forward pass: all layers, and what is outside of
    them: measured, or the final norm and its output, and the rotary tables."""
    a = precision.element
    if shape.ends.saved is not None:
        ends = shape.ends.saved.whole.of(a, precision.longest)
    else:
        attention = shape.last.attention
        assert attention is not None
        ends = (_norm(shape, precision) + a) * shape.hidden + 2 * a * attention.head_dim
    layers = sum(
        count * kept_of_layer(shape, layer, precision, checkpointing)
        for layer, count in shape.stack
    )
    # Layers that no gradient reaches keep nothing.
    layers *= 1 - shape.idle_share
    return layers + ends


def head(shape: ModelShape, precision: Precision, rows: int) -> float:
    """Returns the peak bytes of the chunked linear cross-entropy for `rows` supervised rows.

    The rows' hidden states and their gradients take 2 a h. A chunk has logits in float32 and, on a
    GPU with a < 4, their gradient (otherwise it replaces them). The head's gradient is summed in
    float32 over chunks and then cast. A CPU multiplies in float32 for any a and holds a copy of the
    head.
    """
    a, size = precision.element, shape.embedding_parameters
    matrix = a if precision.on_gpu else 4
    max_rows = max(1, (GPU_LOGITS if precision.on_gpu else CPU_LOGITS) // (4 * shape.vocab))
    chunks = -(-rows // max_rows)
    logits = 4 * -(-rows // max(1, chunks)) * shape.vocab
    own_gradient = logits * matrix / 4 if matrix < 4 else 0
    trained = size * (not shape.frozen.head)
    summed = (4 if chunks > 1 else matrix) * trained
    cast = a * trained if a < 4 and (chunks > 1 or matrix != a) else 0
    copy = matrix * size if matrix != a else 0
    return 2 * a * rows * shape.hidden + logits + own_gradient + summed + cast + copy


def head_gradients(shape: ModelShape, precision: Precision, rows: int) -> int:
    """Returns bytes at the start of the backward pass: the gradients of rows and head, and the same
    multiplied by the gradient of the loss."""
    head = shape.embedding_parameters * (not shape.frozen.head)
    return 2 * precision.element * (rows * shape.hidden + head)
