"""The memory model: the bytes that one rank holds, part by part, for a model, a world size and a setting. Pure arithmetic.

What is held is read off DeepSpeed 0.19.8's source (runtime/zero/{stage_1_and_2,stage3}.py, runtime/bf16_optimizer.py), with P the
parameters and N the ranks. Checked against measurement: bytes a parameter at N = 1 of stage 2 with float32 accumulation (18) and
bfloat16 accumulation (22), of stage 3 with bfloat16 accumulation (16, and 4 for each of a sub-group's), and against the bytes
saved on a CPU for activations (docs/memory.md). Not measured on a GPU: buffers, the head's peak, and the constants below, which
are estimates. benchmarks/results/ holds no peak of a GPU yet.

Parts are added up as at the dearest moment of a step: the start of the backward pass, when all layers' activations are held.
"""

from dataclasses import dataclass
from typing import Literal

from ift_scale.config import TrainConfig
from ift_scale.train import activations
from ift_scale.train.activations import Checkpointing, Precision
from ift_scale.train.shape import ModelShape

GIB = 2**30

# Settings of ZeRO that decide about memory, in elements; `zero` puts them into DeepSpeed's configuration.
BUCKET = 200_000_000
SUB_GROUP = 100_000_000
LIVE = 1_000_000_000
PREFETCH = 100_000_000

# DeepSpeed's own bucket of whole gradients where there is no ZeRO-2 or 3 (engine.py, MEMORY_OPT_ALLREDUCE_SIZE).
_ALLREDUCE_BUCKET = 500_000_000

# Estimates: CUDA context with the libraries' workspaces; NCCL's channels; what the caching allocator loses of what comes and goes.
CONTEXT_BYTES = 1.0 * GIB
NCCL_BYTES = 1.0 * GIB
FRAGMENTATION_SHARE = 0.1

Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class Setting:
    """What `auto` decides: each a value of the train section."""

    zero_stage: int
    offload: Offload
    checkpointing: Checkpointing

    def __str__(self) -> str:
        moved = "no offload" if self.offload == "none" else f"offload {self.offload}"
        return f"ZeRO-{self.zero_stage}, {self.checkpointing} activation checkpointing, {moved}"


@dataclass(frozen=True)
class Workload:
    """What does not depend on the setting. `tokens`: most in one rank's forward pass; `rows`: most supervised ones among them."""

    shape: ModelShape
    world_size: int
    mixed: bool
    """bfloat16 with float32 master weights; else float32."""
    fused: bool
    tokens: int
    rows: int
    on_gpu: bool = True

    @classmethod
    def of(cls, config: TrainConfig, shape: ModelShape, world_size: int, on_gpu: bool) -> "Workload":
        """Of a configuration. All tokens may be supervised; whoever computes the ops of `kernels`, they keep their inputs only."""
        mixed = config.precision == "bfloat16" or (config.precision == "auto" and on_gpu)
        tokens = config.tokens_per_micro_batch
        return cls(shape, world_size, mixed, True, tokens, tokens, on_gpu)

    @property
    def element(self) -> int:
        """Bytes of a weight and of an activation."""
        return 2 if self.mixed else 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: on its device, and in host memory for what is offloaded."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    head: float
    fragmentation: float
    context: float
    host: float

    @property
    def total(self) -> float:
        """On the device."""
        states = self.weights + self.gradients + self.optimizer
        return states + self.buffers + self.activations + self.head + self.fragmentation + self.context


def gradient_bytes(stage: int, world_size: int, element: int, accumulation: int, offload: Offload) -> float:
    """Bytes a parameter of gradients on the device.

    0: the gradients themselves. 1: whole on every rank; in mixed precision BF16_Optimizer holds float32 sums beside the bfloat16
    gradients (where the optimizer is offloaded, ZeRO-1 holds the sums alone), else the own part is flattened for the step.
    2: one flat float32 buffer of the own part; where weights and sums have one type there is no such buffer, and the own
    part is held twice while it is summed and flattened, then cast. 3: one flat buffer, in host memory with the optimizer.
    """
    if stage == 0:
        return element
    if stage == 1 and element != accumulation:
        return accumulation + (element if offload == "none" else 0)
    if stage == 3:
        return accumulation / world_size if offload == "none" else 0
    if stage == 1:
        return element + element / world_size
    if element != accumulation:
        return accumulation / world_size
    twice_and_cast = 2 * element + (4 if element < 4 else 0)
    return twice_and_cast / world_size if offload == "none" else 0


def optimizer_bytes(stage: int, world_size: int) -> float:
    """Bytes a parameter: master weight and two moments, float32. ZeRO keeps the master weight in float32 training too."""
    return 8 if stage == 0 else 12 / world_size


def _pinned(size: float) -> float:
    """Page-locked bytes that torch's host allocator takes for one tensor: the next power of two."""
    return 2 ** max(0, int(size) - 1).bit_length() if size else 0


def host_bytes(parameters: int, world_size: int, element: int, setting: Setting) -> float:
    """Page-locked and other host memory of one rank for what is offloaded.

    Optimizer: master weights, moments and float32 gradients of the own part, and for stage 2 its weights on their way back, for
    stage 3 the accumulated gradients. All: the weights too.
    """
    own = parameters / world_size
    if setting.offload == "none":
        return 0
    moments = 8 * own
    if setting.zero_stage < 3:
        return moments + 2 * _pinned(4 * own) + _pinned(element * own)
    group = min(SUB_GROUP, own)
    grouped = 2 * own / group * _pinned(4 * group)
    weights = _pinned(element * own) if setting.offload == "all" else 0
    return moments + grouped + _pinned(4 * own) + weights


def _buffers(work: Workload, setting: Setting) -> float:
    """Bytes of what ZeRO holds for a while in the backward pass beside gradients: buckets, float32 copies, gathered weights.

    Stage 2: two buckets (communication overlaps), their flattened copy, and the largest slice cast to float32. Stage 3: a bucket,
    its rearranged copy, and the gathered weights: `LIVE` and what one fetch overshoots it by, with a prefetch's copy. On one rank
    nothing is gathered, the weights are where they are used unless they are offloaded. In both the gradient of one matrix.
    """
    shape, element, own = work.shape, work.element, work.shape.parameters / work.world_size
    matrix = shape.hidden * max(shape.intermediate, shape.q_size)
    bucket = BUCKET if work.on_gpu else min(BUCKET, shape.parameters)  # a CPU's pages are taken when they are written
    if setting.zero_stage == 0 or (setting.zero_stage == 1 and work.mixed and setting.offload == "none"):
        return element * matrix + 4 * min(_ALLREDUCE_BUCKET, shape.parameters) * (work.world_size > 1)
    if setting.zero_stage < 3:
        moved = element * shape.embedding_parameters if setting.offload != "none" else 0
        cast = 4 * min(shape.embedding_parameters, own) if work.mixed else 0
        return element * (3 * bucket + matrix) + cast + moved
    live = min(LIVE + 2 * matrix + PREFETCH, shape.parameters) if work.world_size > 1 or setting.offload == "all" else 0
    return element * (2 * bucket + matrix + live)


def _step(work: Workload, setting: Setting) -> float:
    """Bytes that the optimizer's step adds to the states, when activations are gone: the largest gradient in float64, for its norm,
    and for stage 3 a sub-group's flattened gradients."""
    own = work.shape.parameters / work.world_size
    largest = min(work.shape.embedding_parameters, own)
    if setting.offload != "none":
        return 0
    return 8 * largest + (4 * min(SUB_GROUP + largest, own) if setting.zero_stage == 3 else 0)


def estimate(work: Workload, setting: Setting) -> Memory:
    """Bytes of one rank, part by part.

    `activations`: those kept and one layer's work; `head`: what the loss needs beyond that work, with the gathered head of stage 3.
    """
    shape, parameters, ranks = work.shape, work.shape.parameters, work.world_size
    stage, offload = setting.zero_stage, setting.offload
    precision = Precision(work.element, work.fused)
    sharded = ranks if stage == 3 else 1
    gathered = stage == 3 and (ranks > 1 or offload == "all")
    working = work.tokens * activations.working(shape, precision, setting.checkpointing)
    loss = activations.head(shape, precision, work.rows) + gathered * work.element * shape.embedding_parameters
    acts = work.tokens * activations.kept(shape, precision, setting.checkpointing) + working
    head, buffers = max(0.0, loss - working), _buffers(work, setting)
    buffers += max(0.0, _step(work, setting) - acts - head - buffers)
    return Memory(
        weights=0 if offload == "all" else work.element * parameters / sharded,
        gradients=gradient_bytes(stage, ranks, work.element, 4, offload) * parameters,
        optimizer=optimizer_bytes(stage, ranks) * parameters if offload == "none" else 0,
        buffers=buffers,
        activations=acts,
        head=head,
        fragmentation=FRAGMENTATION_SHARE * (acts + head + buffers),
        context=(CONTEXT_BYTES + NCCL_BYTES * (ranks > 1)) * work.on_gpu,
        host=host_bytes(parameters, ranks, work.element, setting),
    )
