"""What one rank computes in an optimizer step, operation by operation: FLOPs, bytes, and what decides its rate.

FLOPs are those of `train.shape.train_flops`, product by product (a test holds the sums together); a product of (m, k) and (k, n)
also reads and writes its three matrices. Operations that only read and write are counted in passes over elements of a bytes: what
a fused kernel needs at least, and what the plain PyTorch references in kernels/*/reference.py do, which a CPU runs.

Not counted: tokenised batches' way to the device, Python between operations but for `Machine.op_seconds`, allocation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ift_scale.errors import DataError, Place
from ift_scale.estimate.activations import Checkpointing
from ift_scale.estimate.machine import Machine, rate
from ift_scale.estimate.memory import SUB_GROUP, Setting
from ift_scale.estimate.shape import ModelShape

# Weights of a layer with seven matrices and two norms.
_LAYER_TENSORS = 9

Part = Literal["matrices", "attention", "head", "passes", "gradients", "update"]

# Bytes of a chunk's float32 logits (kernels/linear_cross_entropy/chunked.py).
_GPU_LOGITS, _CPU_LOGITS = 256 * 2**20, 64 * 2**20


@dataclass(frozen=True)
class MicroBatch:
    """One rank's examples: computed tokens and supervised rows of each; `saved`: tokens not computed since they are shared."""

    lengths: tuple[float, ...]
    rows: tuple[float, ...]
    saved: float = 0.0

    @property
    def tokens(self) -> float:
        return sum(self.lengths) - self.saved

    @property
    def num_rows(self) -> float:
        return sum(self.rows)

    def pairs(self, last: bool) -> float:
        """(query, key) pairs of causal attention, of the supervised rows where `last`; shared prefixes are counted for each."""
        if last:
            return sum(
                r * n - r * (r - 1) / 2 for n, r in zip(self.lengths, self.rows, strict=True)
            )
        return sum(n * (n + 1) / 2 for n in self.lengths)


@dataclass(frozen=True)
class Op:
    """`count` equal operations, each of `flops` and `bytes`. `scale`: where to read the rate of its FLOPs, see `Machine`."""

    part: Part
    flops: float
    bytes: float
    count: float
    scale: float = 1.0
    launches: float = 1.0
    """Operations that the host issues for each."""
    in_place: bool = False
    effort: float = 1.0
    """Times that computing takes longer than its FLOPs say."""


def seconds(op: Op, machine: Machine) -> float:
    """On the device: the longer of computing and of reading and writing."""
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
class Counter:
    """What the operations of a model's passes are counted with."""

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
        """Passes over `elements`, told to the machine one operation (of two reads or writes) at a time."""
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

    def _matrices(self, tokens: float, rows: float) -> list[tuple[float, int, int]]:
        """(m, n, k) of one layer's seven products: keys and values of all tokens, the rest of `rows`."""
        h, q, kv, i = (
            self.shape.hidden,
            self.shape.q_size,
            self.shape.kv_size,
            self.shape.intermediate,
        )
        return [
            (tokens, kv, h),
            (tokens, kv, h),
            (rows, q, h),
            (rows, h, q),
            (rows, i, h),
            (rows, i, h),
            (rows, h, i),
        ]

    def _layer_forward(self, batch: MicroBatch, last: bool) -> list[Op]:
        shape, fused = self.shape, self.fused
        tokens, rows = batch.tokens, batch.num_rows if last else batch.tokens
        ops = [
            op
            for m, n, k in self._matrices(tokens, rows)
            for op in self._product("matrices", m, n, k)
        ]
        ops += self._attention(batch, last, 1)
        normed = shape.norms_per_layer / 2 * (tokens + rows) * shape.hidden
        ops += self._passes(normed, 2 if fused else 5, 2 if fused else 12)
        if shape.head_norms:
            ops += self._passes(
                rows * shape.q_size + tokens * shape.kv_size, 2 if fused else 5, 2 if fused else 12
            )
        ops += self._passes(
            rows * shape.q_size + tokens * shape.kv_size, 2 if fused else 5, 1 if fused else 6
        )
        ops += self._passes(rows * shape.intermediate, 3 if fused else 5, 1 if fused else 2)
        return ops + self._passes(2 * rows * shape.hidden, 3, 2)

    def _layer_backward(self, batch: MicroBatch, last: bool) -> list[Op]:
        shape, fused = self.shape, self.fused
        tokens, rows = batch.tokens, batch.num_rows if last else batch.tokens
        ops = []
        for m, n, k in self._matrices(tokens, rows):
            ops += self._product("matrices", m, k, n) + self._product("matrices", n, k, m)
        ops += self._attention(batch, last, 2)
        normed = shape.norms_per_layer / 2 * (tokens + rows) * shape.hidden
        ops += self._passes(normed, 3 if fused else 14, 2 if fused else 18)
        if shape.head_norms:
            ops += self._passes(
                rows * shape.q_size + tokens * shape.kv_size, 3 if fused else 14, 2 if fused else 18
            )
        ops += self._passes(
            rows * shape.q_size + tokens * shape.kv_size, 2 if fused else 5, 1 if fused else 6
        )
        ops += self._passes(rows * shape.intermediate, 5 if fused else 11, 1 if fused else 4)
        return ops + self._passes(
            4 * rows * shape.hidden, 3, 4
        )  # residuals, and where three and two products' gradients meet

    def _attention(self, batch: MicroBatch, last: bool, times: int) -> list[Op]:
        """Forward (`times` 1) or backward (2). A CPU splits the row into examples and computes one after another.

        Heads smaller than 64 take as long as those of 64: a score's exponential costs the same, and kernels pad them.
        """
        examples, pairs = len(batch.lengths), batch.pairs(last)
        if pairs <= 0:
            return []
        launches = 1.0 if self.on_gpu else float(examples)
        flops = 4 * self.shape.q_size * pairs * times
        length = sum(n * n for n in batch.lengths) / sum(batch.lengths)
        effort = max(1.0, 64 / self.shape.head_dim)
        ops = [Op("attention", flops, 0, 1, length, launches, effort=effort)]
        if not self.on_gpu:  # into one row again, and heads to the back
            ops += self._passes(
                batch.tokens * (2 * self.shape.q_size + 2 * self.shape.kv_size * (times - 1)), 2, 3
            )
        return ops

    def forward(self, batch: MicroBatch) -> list[Op]:
        """Embedding and layers."""
        whole = self.shape.layers - self.pruned
        ops = [_times(op, whole) for op in self._layer_forward(batch, last=False)]
        if self.pruned:
            ops += self._layer_forward(batch, last=True)
        return (
            ops
            + self._passes(batch.tokens * self.shape.hidden, 2)
            + self._passes(batch.num_rows * self.shape.hidden, 2)
        )

    def backward(self, batch: MicroBatch) -> list[Op]:
        """Layers and embedding, whose gradient is a whole matrix."""
        whole = self.shape.layers - self.pruned
        ops = [_times(op, whole) for op in self._layer_backward(batch, last=False)]
        if self.pruned:
            ops += self._layer_backward(batch, last=True)
        ops += self._passes(batch.num_rows * self.shape.hidden, 3)
        return (
            ops
            + self._passes(self.shape.embedding_parameters, 1)
            + self._passes(batch.tokens * self.shape.hidden, 3)
        )

    def recomputed(self, batch: MicroBatch, checkpointing: Checkpointing) -> list[Op]:
        """What the backward pass computes again: nothing, all but products and attention, or the layers' whole forward pass."""
        if checkpointing == "none":
            return []
        whole = [
            _times(op, self.shape.layers - self.pruned)
            for op in self._layer_forward(batch, last=False)
        ]
        whole += self._layer_forward(batch, last=True) if self.pruned else []
        return whole if checkpointing == "full" else [op for op in whole if op.part == "passes"]

    def head(self, batch: MicroBatch) -> list[Op]:
        """Logits, loss and both gradients of the supervised rows, chunk by chunk, all in the forward pass."""
        rows, vocab, hidden = batch.num_rows, self.shape.vocab, self.shape.hidden
        if rows <= 0:
            return []
        bound = (_GPU_LOGITS if self.on_gpu else _CPU_LOGITS) // (4 * vocab)
        chunks = -(-rows // max(1, bound))
        chunk = rows / chunks
        ops = self._product("head", chunk, vocab, hidden, chunks) + self._product(
            "head", chunk, hidden, vocab, chunks
        )
        ops += self._product("head", vocab, hidden, chunk, chunks)
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
        sums = (
            4 * self.shape.embedding_parameters
        )  # the weight's gradient: zeros, sums over chunks, scaled by what comes from above
        return [*ops, Op("head", 0, 2 * sums, 1 + chunks + 1)]

    def _tensors(self) -> list[tuple[float, int]]:
        """(elements, how many) of the weights: embedding and head, and the layers' by their mean."""
        shape = self.shape
        ends = 1 if shape.tied else 2
        return [
            (shape.embedding_parameters, ends),
            (shape.layer_parameters / _LAYER_TENSORS, _LAYER_TENSORS * shape.layers),
        ]

    def _each(
        self, part: Part, bytes_each: float, times: float, own: float = 1.0, in_place: bool = True
    ) -> list[Op]:
        """`times` an operation of `bytes_each` an element over every weight, or the `own` share of each."""
        return [
            Op(part, 0, bytes_each * size * own, times * count, in_place=in_place)
            for size, count in self._tensors()
        ]

    def gradients(self, setting: Setting, ranks: int) -> list[Op]:
        """Of a micro-batch: added up tensor by tensor (stage 0); else copied into a bucket, which is new memory each time, and
        added to the sums of the own part. Among several ranks the bucket is divided, its slices are flattened into new memory for
        sending and copied back, and stage 3 lays out the weights that it has gathered."""
        if setting.zero_stage == 0:
            return self._each("gradients", 2 * self.element, 1)
        whole = self.element * self.shape.parameters
        among = float(ranks > 1)
        ops = [
            Op("gradients", 0, 2 * whole, 1 + among),
            Op("gradients", 0, 2 * whole, 2 * among, in_place=True),
        ]
        ops += self._each("gradients", self.element + 8, 1, 1 / ranks)
        return [*ops, Op("gradients", 0, 2 * whole, among * (setting.zero_stage == 3))]

    def update(self, setting: Setting, ranks: int) -> list[Op]:
        """Of a step, on the device: nothing where the optimizer is offloaded, else norm, clipping, AdamW on the own part, new
        weights into the model. Stage 0 goes tensor by tensor, the others over the own part as a whole (stage 3: sub-groups).

        Bytes a parameter: fused AdamW reads weight, gradient and two moments and writes three of them, 28; torch's on a CPU
        (torch/optim/adam.py, one tensor at a time, no weight decay) works in place with lerp 12, mul 8, addcmul 12, add 8,
        addcdiv 16, and makes new tensors with sqrt 8 and div 8. ZeRO's norm is taken of a copy in float64, 12 and 8, the gradients
        are flattened, 8, and scaled, 8 (stage_1_and_2.py). Stage 0 flattens them for sending, divides and copies them back.
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
        own = self.shape.parameters / ranks
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
    """(of a micro-batch, of a step) that the host's memory and its link to the device take; nothing of it is taken to overlap.

    A micro-batch sends the own part's gradients down, and with offloaded weights these up for each of two passes; a step reads and
    writes 28 bytes a parameter in the host's memory, as `update` does, and sends the new weights up.
    """
    if setting.offload == "none":
        return 0.0, 0.0
    if machine.host is None:
        raise DataError(
            Place(f"machine {machine.name}", field="host"),
            "is needed for offload",
            "Describe host.link and host.memory",
        )
    own = shape.parameters / ranks
    sent = element * own / machine.host.link
    return sent * (3 if setting.offload == "all" else 1), 28 * own / machine.host.memory + sent


def _times(op: Op, count: int) -> Op:
    return replace(op, count=op.count * count)


def flops(ops: Sequence[Op]) -> float:
    return sum(op.flops * op.count for op in ops)
