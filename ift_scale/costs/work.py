"""What one rank computes in an optimizer step, operation by operation: FLOPs, bytes, and what decides its rate.

FLOPs are those of `train.shape.train_flops`, product by product (a test holds the sums together); a product of (m, k) and (k, n)
also reads and writes its three matrices. Operations that only read and write are counted in passes over elements of a bytes: what
a fused kernel needs at least, and what the plain PyTorch references in kernels/*/reference.py do, which a CPU runs.

Not counted: tokenised batches' way to the device, Python between operations but for `Machine.op_seconds`, allocation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ift_scale.costs.machine import Machine, rate
from ift_scale.errors import DataError, Place
from ift_scale.train.activations import Checkpointing
from ift_scale.train.memory import Setting
from ift_scale.train.shape import ModelShape

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
            return sum(r * n - r * (r - 1) / 2 for n, r in zip(self.lengths, self.rows, strict=True))
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


def seconds(op: Op, machine: Machine) -> float:
    """On the device: the longer of computing and of reading and writing."""
    if op.count == 0:
        return 0.0
    curve = machine.attention if op.part == "attention" else machine.matrix
    computing = op.flops / rate(curve, op.scale) if op.flops else 0.0
    moving = op.bytes / rate(machine.memory, op.bytes) if op.bytes else 0.0
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
        return [Op(part, 2 * m * n * k, self.element * (m * k + k * n + m * n), count, min(m, n, k))]

    def _passes(self, elements: float, passes: int, launches: int = 1, part: Part = "passes") -> list[Op]:
        """Passes over `elements`, told to the machine one operation (of two reads or writes) at a time."""
        operations = max(1.0, passes / 2)
        return [Op(part, 0, self.element * elements * passes / operations, operations, launches=launches / operations)]

    def _matrices(self, tokens: float, rows: float) -> list[tuple[float, int, int]]:
        """(m, n, k) of one layer's seven products: keys and values of all tokens, the rest of `rows`."""
        h, q, kv, i = self.shape.hidden, self.shape.q_size, self.shape.kv_size, self.shape.intermediate
        return [(tokens, kv, h), (tokens, kv, h), (rows, q, h), (rows, h, q), (rows, i, h), (rows, i, h), (rows, h, i)]

    def _layer_forward(self, batch: MicroBatch, last: bool) -> list[Op]:
        shape, fused = self.shape, self.fused
        tokens, rows = batch.tokens, batch.num_rows if last else batch.tokens
        ops = [op for m, n, k in self._matrices(tokens, rows) for op in self._product("matrices", m, n, k)]
        ops += self._attention(batch, last, 1)
        normed = shape.norms_per_layer / 2 * (tokens + rows) * shape.hidden
        ops += self._passes(normed, 2 if fused else 5, 2 if fused else 12)
        if shape.head_norms:
            ops += self._passes(rows * shape.q_size + tokens * shape.kv_size, 2 if fused else 5, 2 if fused else 12)
        ops += self._passes(rows * shape.q_size + tokens * shape.kv_size, 2 if fused else 5, 1 if fused else 6)
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
            ops += self._passes(rows * shape.q_size + tokens * shape.kv_size, 3 if fused else 14, 2 if fused else 18)
        ops += self._passes(rows * shape.q_size + tokens * shape.kv_size, 2 if fused else 5, 1 if fused else 6)
        ops += self._passes(rows * shape.intermediate, 5 if fused else 11, 1 if fused else 4)
        return ops + self._passes(4 * rows * shape.hidden, 3, 4)  # residuals, and where three and two products' gradients meet

    def _attention(self, batch: MicroBatch, last: bool, times: int) -> list[Op]:
        """Forward (`times` 1) or backward (2). A CPU splits the row into examples and computes one after another."""
        examples, pairs = len(batch.lengths), batch.pairs(last)
        if pairs <= 0:
            return []
        launches = 1.0 if self.on_gpu else float(examples)
        flops = 4 * self.shape.q_size * pairs * times
        ops = [Op("attention", flops, 0, 1, sum(n * n for n in batch.lengths) / sum(batch.lengths), launches)]
        if not self.on_gpu:  # into one row again, and heads to the back
            ops += self._passes(batch.tokens * (2 * self.shape.q_size + 2 * self.shape.kv_size * (times - 1)), 2, 3)
        return ops

    def forward(self, batch: MicroBatch) -> list[Op]:
        """Embedding and layers."""
        whole = self.shape.layers - self.pruned
        ops = [_times(op, whole) for op in self._layer_forward(batch, last=False)]
        if self.pruned:
            ops += self._layer_forward(batch, last=True)
        return ops + self._passes(batch.tokens * self.shape.hidden, 2) + self._passes(batch.num_rows * self.shape.hidden, 2)

    def backward(self, batch: MicroBatch) -> list[Op]:
        """Layers and embedding, whose gradient is a whole matrix."""
        whole = self.shape.layers - self.pruned
        ops = [_times(op, whole) for op in self._layer_backward(batch, last=False)]
        if self.pruned:
            ops += self._layer_backward(batch, last=True)
        ops += self._passes(batch.num_rows * self.shape.hidden, 3)
        return ops + self._passes(self.shape.embedding_parameters, 1) + self._passes(batch.tokens * self.shape.hidden, 3)

    def recomputed(self, batch: MicroBatch, checkpointing: Checkpointing) -> list[Op]:
        """What the backward pass computes again: nothing, all but products and attention, or the layers' whole forward pass."""
        if checkpointing == "none":
            return []
        whole = [_times(op, self.shape.layers - self.pruned) for op in self._layer_forward(batch, last=False)]
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
        ops = self._product("head", chunk, vocab, hidden, chunks) + self._product("head", chunk, hidden, vocab, chunks)
        ops += self._product("head", vocab, hidden, chunk, chunks)
        passes, launches = (3, 1) if self.fused else (9, 9)
        ops += [Op("head", 0, 4 * chunk * vocab * 2, chunks * passes / 2, launches=2 * launches / passes)]
        sums = (
            4 * self.shape.embedding_parameters
        )  # the weight's gradient: zeros, sums over chunks, scaled by what comes from above
        return [*ops, Op("head", 0, 2 * sums, 1 + chunks + 1)]

    def gradients(self, setting: Setting, ranks: int) -> list[Op]:
        """Of a micro-batch: into buckets, divided, added to the sums of the own part. Stage 3 also lays gathered weights out."""
        parameters, own = self.shape.parameters, self.shape.parameters / (1 if setting.zero_stage == 0 else ranks)
        tensors = 9 * self.shape.layers + 3
        if setting.zero_stage == 0:
            return [Op("gradients", 0, self.element * 2 * parameters / tensors, tensors)]
        moved = Op("gradients", 0, self.element * 2 * parameters / tensors, tensors * (2 if ranks > 1 else 1))
        sums = Op("gradients", 0, (self.element + 8) * own / tensors, tensors)
        laid = Op("gradients", 0, self.element * 2 * parameters / tensors, tensors * (setting.zero_stage == 3 and ranks > 1))
        return [moved, sums, laid]

    def update(self, setting: Setting, ranks: int) -> list[Op]:
        """Of a step, on the device: nothing where the optimizer is offloaded, else norm, unscaling and clipping, AdamW on the own part, new weights into the model.

        Fused AdamW reads weight, gradient and two moments and writes three of them: 28 bytes. torch's on a CPU passes 20 times
        over float32 numbers.
        """
        if setting.offload != "none":
            return []
        own = self.shape.parameters / (1 if setting.zero_stage == 0 else ranks)
        tensors = 9 * self.shape.layers + 3 if setting.zero_stage == 0 else max(1, round(own / 1e8)) if self.fused else 1
        each = own / tensors
        clipped = Op("update", 0, 8 * each, 2 * tensors)
        adam = Op("update", 0, 28 * each, tensors) if self.fused else Op("update", 0, 8 * each, 10 * tensors)
        copied = Op("update", 0, (4 + self.element) * each, tensors * (setting.zero_stage > 0))
        return [clipped, adam, copied]


def offload_seconds(shape: ModelShape, setting: Setting, ranks: int, element: int, machine: Machine) -> tuple[float, float]:
    """(of a micro-batch, of a step) that the host's memory and its link to the device take; nothing of it is taken to overlap.

    A micro-batch sends the own part's gradients down, and with offloaded weights these up for each of two passes; a step reads and
    writes 28 bytes a parameter in the host's memory, as `update` does, and sends the new weights up.
    """
    if setting.offload == "none":
        return 0.0, 0.0
    if machine.host is None:
        raise DataError(
            Place(f"machine {machine.name}", field="host"), "is needed for offload", "Describe host.link and host.memory"
        )
    own = shape.parameters / ranks
    sent = element * own / machine.host.link
    return sent * (3 if setting.offload == "all" else 1), 28 * own / machine.host.memory + sent


def _times(op: Op, count: int) -> Op:
    return Op(op.part, op.flops, op.bytes, op.count * count, op.scale, op.launches)


def flops(ops: Sequence[Op]) -> float:
    return sum(op.flops * op.count for op in ops)
