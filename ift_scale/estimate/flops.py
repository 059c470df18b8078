"""FLOPs and bytes of each operation of a rank in an optimizer step, and which of them limits it.

The FLOPs equal those of `shape.train_flops`, product by product (a test compares the sums). A
product of (m, k) and (k, n) also reads or writes its three matrices. Operations that only move data
are counted in passes over elements of a bytes: the minimum of a fused kernel, or what the plain
PyTorch references in kernels/*/reference.py do, which a CPU runs.

Not counted: copying batches to the device, Python between operations except for
`Machine.op_seconds`, and allocation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ift_scale.errors import DataError, Place
from ift_scale.estimate.activations import Checkpointing
from ift_scale.estimate.layers import LayerShape
from ift_scale.estimate.machine import Machine, rate
from ift_scale.estimate.memory import SUB_GROUP, Setting
from ift_scale.estimate.shape import ModelShape, saved_by_freezing

Part = Literal["matrices", "attention", "head", "passes", "gradients", "update"]

# Maximum bytes of a chunk's float32 logits (kernels/linear_cross_entropy/chunked.py).
_GPU_LOGITS, _CPU_LOGITS = 256 * 2**20, 64 * 2**20


@dataclass(frozen=True)
class BatchShape:
    """One rank's examples: computed tokens and supervised rows of each.

    `saved`: tokens that are not computed again because examples share them as a prefix.
    """

    lengths: tuple[float, ...]
    rows: tuple[float, ...]
    saved: float = 0.0

    @property
    def tokens(self) -> float:
        """Number of computed tokens."""
        return sum(self.lengths) - self.saved

    @property
    def num_rows(self) -> float:
        """Number of supervised rows."""
        return sum(self.rows)

    def pairs(self, last: bool) -> float:
        """Returns the (query, key) pairs of causal attention; those of supervised rows if `last`.

        Shared prefixes count for each example.
        """
        if last:
            return sum(
                r * n - r * (r - 1) / 2 for n, r in zip(self.lengths, self.rows, strict=True)
            )
        return sum(n * (n + 1) / 2 for n in self.lengths)


@dataclass(frozen=True)
class Op:
    """`count` equal operations with `flops` and `bytes` each.

    `scale`: the size at which the machine's curve gives the rate of the FLOPs, see `Machine`.
    """

    part: Part
    flops: float
    bytes: float
    count: float
    scale: float = 1.0
    launches: float = 1.0
    """Number of operations that the host issues for each."""
    in_place: bool = False
    """True if the operation writes where it has read."""
    effort: float = 1.0
    """Factor by which computing takes longer than the FLOPs alone."""


def seconds(op: Op, machine: Machine) -> float:
    """Returns the seconds on the device: the longer of computing and of moving data."""
    if op.count == 0:
        return 0.0
    curve = machine.attention if op.part == "attention" else machine.matrix
    computing = op.effort * op.flops / rate(curve, op.scale) if op.flops else 0.0
    moving = (
        op.bytes / rate(machine.in_place if op.in_place else machine.memory, op.bytes)
        if op.bytes
        else 0.0
    )
    return op.count * max(computing, moving)


@dataclass(frozen=True)
class OpCounter:
    """Counts the operations of a model's passes.

    `element`: bytes of an element. `fused`: norms, SwiGLU and the loss are fused kernels. `pruned`:
    the last layer computes supervised rows only.
    """

    shape: ModelShape
    element: int
    fused: bool
    pruned: bool
    on_gpu: bool

    def _product(self, part: Part, m: float, n: float, k: float, count: float = 1) -> list[Op]:
        if min(m, n, k) <= 0:
            return []
        return [
            Op(part, 2 * m * n * k, self.element * (m * k + k * n + m * n), count, min(m, n, k))
        ]

    def _passes(
        self, elements: float, passes: int, launches: int = 1, part: Part = "passes"
    ) -> list[Op]:
        """Returns passes over `elements`, two reads or writes per operation."""
        operations = max(1.0, passes / 2)
        return [
            Op(
                part,
                0,
                self.element * elements * passes / operations,
                operations,
                launches=launches / operations,
            )
        ]

    def _products(self, layer: LayerShape, tokens: float, rows: float, back: bool) -> list[Op]:
        """Returns a layer's products of one pass: those of keys and values for all tokens, the
        others for `rows`. Rows that choose among several matrices are spread evenly."""
        ops = []
        for product in layer.products:
            chosen = (tokens if product.keys else rows) * product.rows
            count = min(float(product.matrices), chosen)
            m, n, k = chosen / max(1.0, count), product.outputs, product.inputs
            if back:
                ops += self._product("matrices", m, k, n, count)
                ops += self._product("matrices", n, k, m, count)
            else:
                ops += self._product("matrices", m, n, k, count)
        return ops

    def _mixing(self, layer: LayerShape, tokens: float, times: int) -> list[Op]:
        """Returns convolutions and recurrences, at the rate of attention."""
        flops = times * layer.mixing_flops * tokens
        return [Op("attention", flops, 0, 1, tokens)] if flops else []

    def _layer_forward(self, layer: LayerShape, batch: BatchShape, last: bool) -> list[Op]:
        fused = self.fused
        tokens, rows = batch.tokens, batch.num_rows if last else batch.tokens
        ops = self._products(layer, tokens, rows, back=False)
        ops += self._attention(layer, batch, last, 1) + self._mixing(layer, tokens, 1)
        ops += self._passes(
            layer.normed / 2 * (tokens + rows), 2 if fused else 5, 2 if fused else 12
        )
        queries_and_keys = rows * layer.q_size + tokens * layer.kv_size
        if layer.head_norms:
            ops += self._passes(queries_and_keys, 2 if fused else 5, 2 if fused else 12)
        ops += self._passes(queries_and_keys, 2 if fused else 5, 1 if fused else 6)
        ops += self._passes(rows * layer.activated, 3 if fused else 5, 1 if fused else 2)
        return ops + self._passes(2 * rows * self.shape.hidden, 3, 2)

    def _layer_backward(self, layer: LayerShape, batch: BatchShape, last: bool) -> list[Op]:
        fused = self.fused
        tokens, rows = batch.tokens, batch.num_rows if last else batch.tokens
        ops = self._products(layer, tokens, rows, back=True)
        ops += self._attention(layer, batch, last, 2) + self._mixing(layer, tokens, 2)
        ops += self._passes(
            layer.normed / 2 * (tokens + rows), 3 if fused else 14, 2 if fused else 18
        )
        queries_and_keys = rows * layer.q_size + tokens * layer.kv_size
        if layer.head_norms:
            ops += self._passes(queries_and_keys, 3 if fused else 14, 2 if fused else 18)
        ops += self._passes(queries_and_keys, 2 if fused else 5, 1 if fused else 6)
        ops += self._passes(rows * layer.activated, 5 if fused else 11, 1 if fused else 4)
        # Residuals, and where the gradients of three and of two products meet.
        return ops + self._passes(4 * rows * self.shape.hidden, 3, 4)

    def _attention(self, layer: LayerShape, batch: BatchShape, last: bool, times: int) -> list[Op]:
        """Returns the forward (`times` 1) or backward (2) operations of attention.

        A CPU splits the row into examples and computes one after another. Heads smaller than 64
        take as long as those of 64: the exponential of a score costs the same, and kernels pad.
        """
        examples, pairs = len(batch.lengths), batch.pairs(last)
        if pairs <= 0 or not layer.pair_flops:
            return []
        launches = 1.0 if self.on_gpu else float(examples)
        flops = layer.pair_flops * pairs * times
        length = sum(n * n for n in batch.lengths) / sum(batch.lengths)
        effort = max(1.0, 64 / layer.attention.head_dim) if layer.attention else 1.0
        ops = [Op("attention", flops, 0, 1, length, launches, effort=effort)]
        if not self.on_gpu:  # joining the examples into one row, and transposing the heads
            moved = 2 * layer.q_size + 2 * layer.kv_size * (times - 1)
            ops += self._passes(batch.tokens * moved, 2, 3)
        return ops

    def _layers(
        self, one: Callable[[LayerShape, BatchShape, bool], list[Op]], batch: BatchShape
    ) -> list[Op]:
        """Returns the operations of all layers, of which `one` gives those of a layer."""
        ops: list[Op] = []
        for layer, count in self.shape.stack:
            pruned = self.pruned and layer is self.shape.last
            ops += [_times(op, count - pruned) for op in one(layer, batch, False)]
            ops += one(layer, batch, True) if pruned else []
        return ops

    def forward(self, batch: BatchShape) -> list[Op]:
        """Returns the operations of embedding, layers, and other modules outside of them."""
        return (
            self._layers(self._layer_forward, batch)
            + self._products(self.shape.ends, batch.tokens, batch.tokens, back=False)
            + self._passes(batch.tokens * self.shape.hidden, 2)
            + self._passes(batch.num_rows * self.shape.hidden, 2)
        )

    def backward(self, batch: BatchShape) -> list[Op]:
        """Returns the operations of layers and embedding, whose gradient is a whole matrix."""
        return (
            self._without_frozen(self._layers(self._layer_backward, batch), batch)
            + self._products(self.shape.ends, batch.tokens, batch.tokens, back=True)
            + self._passes(batch.num_rows * self.shape.hidden, 3)
            + self._passes(self.shape.embedding_parameters, 1)
            + self._passes(batch.tokens * self.shape.hidden, 3)
        )

    def _without_frozen(self, ops: list[Op], batch: BatchShape) -> list[Op]:
        """Returns a backward pass' operations, fewer by what frozen parameters save.

        All products, and all operations of attention, shrink by the same factor.
        """
        shape = self.shape
        if not shape.frozen.layers:
            return ops
        pairs = batch.pairs(False), batch.pairs(True)
        matrices, attention, _ = saved_by_freezing(
            shape, batch.tokens, batch.num_rows, *pairs, self.pruned
        )
        left = {"passes": 1 - shape.idle_share}
        for part, saved in (("matrices", matrices), ("attention", attention)):
            whole = flops([op for op in ops if op.part == part])
            left[part] = 1 - saved / whole if whole else 1.0
        return [replace(op, count=op.count * left[op.part]) for op in ops]

    def recomputed(self, batch: BatchShape, checkpointing: Checkpointing) -> list[Op]:
        """Returns what the backward pass recomputes: nothing, everything except products and
        attention, or the layers' whole forward pass."""
        if checkpointing == "none":
            return []
        whole = self._layers(self._layer_forward, batch)
        return whole if checkpointing == "full" else [op for op in whole if op.part == "passes"]

    def head(self, batch: BatchShape) -> list[Op]:
        """Returns logits, loss and both gradients of the supervised rows, which the chunked kernel
        computes in the forward pass."""
        rows, vocab, hidden = batch.num_rows, self.shape.vocab, self.shape.hidden
        if rows <= 0:
            return []
        max_rows = (_GPU_LOGITS if self.on_gpu else _CPU_LOGITS) // (4 * vocab)
        chunks = -(-rows // max(1, max_rows))
        chunk = rows / chunks
        ops = self._product("head", chunk, vocab, hidden, chunks) + self._product(
            "head", chunk, hidden, vocab, chunks
        )
        trained = not self.shape.frozen.head
        ops += self._product("head", vocab, hidden, chunk, chunks * trained)
        passes, launches = (3, 1) if self.fused else (9, 9)
        ops += [
            Op(
                "head",
                0,
                4 * chunk * vocab * 2,
                chunks * passes / 2,
                launches=2 * launches / passes,
            )
        ]
        # The weight's gradient: zeroed, summed over chunks, scaled by the gradient of the loss.
        sums = 4 * self.shape.embedding_parameters
        return [*ops, Op("head", 0, 2 * sums, (1 + chunks + 1) * trained)]

    def _tensors(self) -> list[tuple[float, int]]:
        """Returns (elements, number) of the weights: embedding and head, and the mean of layers."""
        ends = (self.shape.embedding_parameters, 1 if self.shape.tied else 2)
        layers = [
            (layer.weights.parameters / layer.weights.tensors, layer.weights.tensors * count)
            for layer, count in self.shape.stack
            if layer.weights.tensors
        ]
        return [ends, *layers]

    def _each(
        self, part: Part, bytes_each: float, times: float, own: float = 1.0, in_place: bool = True
    ) -> list[Op]:
        """Returns `times` operations of `bytes_each` per element on every trained weight, or on the
        share `own` of each. Trained weights count as if they were spread evenly."""
        trained = self.shape.trainable / self.shape.parameters
        return [
            Op(part, 0, bytes_each * size * own, times * count * trained, in_place=in_place)
            for size, count in self._tensors()
        ]

    def gradients(self, setting: Setting, ranks: int) -> list[Op]:
        """Returns the handling of a micro-batch's gradients.

        Stage 0 adds them up tensor by tensor. The others copy them into a bucket, which is new
        memory each time, and add them to the sums of the rank's own part. With several ranks, the
        bucket is divided, and its slices are flattened into new memory for sending and copied back.
        Stage 3 also lays out the weights that it has gathered.
        """
        if setting.zero_stage == 0:
            return self._each("gradients", 2 * self.element, 1)
        whole = self.element * self.shape.trainable
        among = float(ranks > 1)
        ops = [
            Op("gradients", 0, 2 * whole, 1 + among),
            Op("gradients", 0, 2 * whole, 2 * among, in_place=True),
        ]
        ops += self._each("gradients", self.element + 8, 1, 1 / ranks)
        return [*ops, Op("gradients", 0, 2 * whole, among * (setting.zero_stage == 3))]

    def update(self, setting: Setting, ranks: int) -> list[Op]:
        """Returns the optimizer step on the device; nothing if the optimizer is offloaded.

        It consists of the norm, clipping, AdamW on the rank's own part, and copying the new weights
        into the model. Stage 0 works tensor by tensor, the others on the whole part (stage 3:
        sub-groups).

        Bytes per parameter: fused AdamW reads weight, gradient and two moments and writes three of
        them, 28. torch's AdamW on a CPU (torch/optim/adam.py, one tensor at a time, no weight
        decay) works in place with lerp 12, mul 8, addcmul 12, add 8 and addcdiv 16, and creates
        tensors with sqrt 8 and div 8. ZeRO computes the norm on a float64 copy, 12 and 8, flattens
        the gradients, 8, and scales them, 8 (stage_1_and_2.py). Stage 0 flattens them for sending,
        divides them and copies them back.
        """
        if setting.offload != "none":
            return []
        adam = (
            [(28.0, True)]
            if self.fused
            else [(12.0, True), (8.0, True), (12.0, True), (8.0, True), (16.0, True), (8.0, False)]
        )
        adam += [] if self.fused else [(8.0, False)]
        if setting.zero_stage == 0:
            passes = [(4.0, True), (8.0, True), *adam]
            passes += [(8.0, False), (8.0, True), (8.0, True)] if ranks > 1 else []
            return [
                op
                for size, in_place in passes
                for op in self._each("update", size, 1, in_place=in_place)
            ]
        own = self.shape.trainable / ranks
        groups = -(-own // SUB_GROUP) if setting.zero_stage == 3 else 1
        passes = [
            (12.0, False),
            (8.0, True),
            (8.0, False),
            (8.0, True),
            *adam,
            (4.0 + self.element, True),
        ]
        return [
            Op("update", 0, size * own / groups, groups, in_place=in_place)
            for size, in_place in passes
        ]


def offload_seconds(
    shape: ModelShape, setting: Setting, ranks: int, element: int, machine: Machine
) -> tuple[float, float]:
    """Returns the seconds (per micro-batch, per step) of the host's memory and its link, assuming
    no overlap.

    A micro-batch sends the own part's gradients to the host and, with offloaded weights, these to
    the device for each of two passes. A step reads and writes 28 bytes per parameter in host
    memory, as in `update`, and sends the new weights to the device.
    """
    if setting.offload == "none":
        return 0.0, 0.0
    if machine.host is None:
        raise DataError(
            Place(f"machine {machine.name}", field="host"),
            "missing, but offload needs it",
            "Describe host.link and host.memory",
        )
    own = shape.trainable / ranks
    sent = element * own / machine.host.link
    return sent * (3 if setting.offload == "all" else 1), 28 * own / machine.host.memory + sent


def _times(op: Op, count: int) -> Op:
    return replace(op, count=op.count * count)


def flops(ops: Sequence[Op]) -> float:
    """Returns the total FLOPs."""
    return sum(op.flops * op.count for op in ops)
