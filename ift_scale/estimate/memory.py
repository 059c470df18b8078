"""The memory model: bytes that one rank holds, by part, for a model, a world size and a setting.

The parts are derived from DeepSpeed 0.19.8's source (runtime/zero/{stage_1_and_2,stage3}.py,
runtime/bf16_optimizer.py), with P parameters and N ranks. Verified by measurement: bytes per
parameter at N = 1 of stage 2 with float32 accumulation (18) and of stage 3 with bfloat16
accumulation (16, and 4 for each parameter of a sub-group); the bytes saved for activations on a
CPU; each phase's peak on a CPU (benchmarks/bench_memory.py). The constants below are estimates, and
no peak of a GPU was measured.

Frozen parameters have weights only. Their layers' saved inputs are counted as if they were trained,
except in the lowest layers, if no gradient reaches them.

States are held all the time. In addition a step has three phases, and the largest one counts: the
loss, with all layers' activations and a chunk of logits; the backward pass, with ZeRO's buckets;
and the optimizer's step.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ift_scale.config.train import TrainConfig
from ift_scale.estimate import activations
from ift_scale.estimate.activations import Checkpointing, Precision
from ift_scale.estimate.shape import ModelShape

GIB = 2**30

# Settings of ZeRO that determine memory, in elements; `train/engine/zero_config.py` uses them.
BUCKET = 200_000_000
SUB_GROUP = 100_000_000
LIVE = 1_000_000_000
PREFETCH = 100_000_000

# Number of ranks up to which ZeRO-1 and 2 reduce a bucket's slices to their owners. This sends half
# the bytes of all-reducing whole buckets, but needs a call per owner, whose latency grows with the
# ranks. By the cost model, not measured: slices are faster up to 64 ranks under every load. Beyond,
# they gain less than 1% at best, except for a step without overlap on 128 A100 (docs/simulator.md).
SLICED_UP_TO = 64

# DeepSpeed's bucket of whole gradients without ZeRO-2 or 3 (engine.py, MEMORY_OPT_ALLREDUCE_SIZE).
_ALLREDUCE_BUCKET = 500_000_000

# Estimates: the CUDA context with the libraries' workspaces; NCCL's channels; the share of
# temporary memory that the caching allocator loses.
CONTEXT_BYTES = 1.0 * GIB
NCCL_BYTES = 1.0 * GIB
# Measured: the memory of a CPU rank after all imports.
PROCESS_BYTES = 0.3 * GIB
FRAGMENTATION_SHARE = 0.1

Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class Setting:
    """The values of the train section that `auto` decides."""

    zero_stage: int
    offload: Offload
    checkpointing: Checkpointing
    hpz: int = 1
    """Ranks that share a second copy of all weights (ZeRO++'s hpZ, stage 3); 1: no copy."""

    @property
    def stage(self) -> str:
        """The stage, as `3, hpZ` if the weights are held a second time."""
        return f"{self.zero_stage}{', hpZ' if self.hpz > 1 else ''}"

    def __str__(self) -> str:
        moved = "no offload" if self.offload == "none" else f"offload {self.offload}"
        copies = f", weights held once per {self.hpz} ranks" if self.hpz > 1 else ""
        return (
            f"ZeRO-{self.zero_stage}{copies}, {self.checkpointing} activation checkpointing, "
            f"{moved}"
        )


@dataclass(frozen=True)
class Workload:
    """Everything that does not depend on the setting.

    `tokens`: maximum tokens in one rank's forward pass. `rows`: maximum supervised ones among them.
    """

    shape: ModelShape
    world_size: int
    mixed: bool
    """True for bfloat16 with float32 master weights, False for float32."""
    fused: bool
    """True if norms and SwiGLU save only their inputs."""
    tokens: int
    rows: int
    on_gpu: bool = True
    repeated: bool = False
    """True if keys and values are repeated for grouped attention."""
    longest: int = 0
    """Tokens of the longest example, for attention that saves its whole matrix."""
    base_copy: bool = False
    """True if every rank holds a frozen copy of the base model (`train.kl.base`), whole at every
    stage."""

    @classmethod
    def of(
        cls, config: TrainConfig, shape: ModelShape, world_size: int, on_gpu: bool
    ) -> "Workload":
        """Returns the workload of a configuration, assuming that all tokens may be supervised.

        Every implementation of `kernels` counts as fused, because all save only their inputs.
        """
        mixed = config.precision == "bfloat16" or (config.precision == "auto" and on_gpu)
        tokens = config.tokens_per_micro_batch
        repeated = shape.grouped and repeats_keys(config.attention, mixed and on_gpu)
        longest = min(tokens, config.max_length)
        return cls(
            shape,
            world_size,
            mixed,
            shape.fused_mlp,
            tokens,
            tokens,
            on_gpu,
            repeated,
            longest,
            config.kl.copies_base,
        )

    @property
    def element(self) -> int:
        """Bytes of a weight and of an activation."""
        return 2 if self.mixed else 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: on its device, and in host memory for offloaded state.

    `activations` are kept from the forward to the backward pass. `loss` and `backward` are added to
    them in these phases. `step` is what the optimizer's step adds to the states after the
    activations are freed.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    backward: float
    step: float
    context: float
    host: float

    @property
    def peak(self) -> float:
        """The maximum of temporary memory."""
        return max(self.activations + max(self.loss, self.backward), self.step)

    @property
    def held(self) -> float:
        """The maximum held by tensors, which torch reports as allocated."""
        return self.weights + self.gradients + self.optimizer + self.peak

    @property
    def fragmentation(self) -> float:
        return FRAGMENTATION_SHARE * self.peak

    @property
    def total(self) -> float:
        """Total bytes on the device."""
        return self.held + self.fragmentation + self.context


def repeats_keys(attention: str, on_gpu: bool) -> bool:
    """True if grouped attention is computed with repeated keys and values.

    SDPA does so, which `auto` uses except on a GPU in bfloat16, and so does a `varlen_attn` of
    torch that does not group heads itself.
    """
    if attention == "auto":
        attention = (
            "sdpa"
            if not on_gpu
            else "flash_attn"
            if importlib.util.find_spec("flash_attn")
            else "varlen"
        )
    return attention == "sdpa" or (attention == "varlen" and not varlen_groups_heads())


@lru_cache(maxsize=1)
def varlen_groups_heads() -> bool:
    """True if torch's `varlen_attn` has `enable_gqa`, which torch 2.11 lacks.

    Reads its source, because importing torch takes seconds.
    """
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return True
    source = Path(torch.origin).parent / "nn" / "attention" / "varlen.py"
    return not source.is_file() or "enable_gqa" in source.read_text(encoding="utf-8")


def whole_buckets(world_size: int) -> bool:
    """True if ZeRO-1 and 2 all-reduce whole buckets with this number of ranks."""
    return world_size > SLICED_UP_TO


def gradient_bytes(
    stage: int, world_size: int, element: int, accumulation: int, offload: Offload
) -> float:
    """Returns bytes per parameter of gradients on the device between micro-batches.

    Stage 0: the gradients themselves. Stage 1: whole on every rank; in mixed precision,
    BF16_Optimizer holds float32 sums in addition to the bfloat16 gradients (with an offloaded
    optimizer, ZeRO-1 holds only the sums). Stage 2: the sums of the rank's own part. Stage 3: one
    flat buffer, in host memory with the optimizer.
    """
    if stage == 0:
        return element
    if stage == 1:
        return accumulation + (element if offload == "none" and element != accumulation else 0)
    if offload == "none":
        return accumulation / world_size
    return accumulation / world_size if stage == 2 and element != accumulation else 0


def optimizer_bytes(stage: int, world_size: int) -> float:
    """Returns bytes per parameter of master weight and two moments in float32.

    ZeRO keeps the master weight in float32 training too.
    """
    return 8 if stage == 0 else 12 / world_size


def _pinned(size: float) -> float:
    """Returns the page-locked bytes that torch's host allocator takes for a tensor: the next power
    of two."""
    return 2 ** max(0, int(size) - 1).bit_length() if size else 0


def host_bytes(
    parameters: int, world_size: int, element: int, setting: Setting, frozen: int = 0
) -> float:
    """Returns one rank's host memory for offloaded state, page-locked and other.

    `parameters` are trained, `frozen` are not and have no other state than the weights.

    Optimizer: master weights, moments and float32 gradients of the rank's own part, and for stage 2
    the staging buffer of its updated weights, for stage 3 the accumulated gradients. All: the
    weights too.
    """
    own = parameters / world_size
    if setting.offload == "none":
        return 0
    moments = 8 * own
    if setting.zero_stage < 3:
        return moments + 2 * _pinned(4 * own) + _pinned(element * own)
    group = min(SUB_GROUP, own)
    grouped = 2 * own / group * _pinned(4 * group)
    weights = _pinned(element * (own + frozen / world_size)) if setting.offload == "all" else 0
    return moments + grouped + _pinned(4 * own) + weights


def _gathered(work: Workload, setting: Setting) -> float:
    """Returns the bytes of weights that ZeRO-3 gathers: `LIVE`, the overshoot of one fetch, and a
    prefetch's copy.

    A single rank gathers nothing, because its weights are in place unless they are offloaded.
    """
    if setting.zero_stage < 3 or (work.world_size == 1 and setting.offload != "all"):
        return 0
    return work.element * min(LIVE + 2 * work.shape.largest + PREFETCH, work.shape.parameters)


def _bucket(work: Workload) -> float:
    """Returns the elements of a bucket. A CPU only allocates the pages that are written."""
    return BUCKET if work.on_gpu else min(BUCKET, work.shape.trainable)


def _always(work: Workload, setting: Setting) -> float:
    """Returns the bytes that ZeRO allocates at its start and keeps.

    Stage 3: its bucket. Stages 1 and 2 with offload: space for the largest gradient.
    """
    if setting.zero_stage == 3:
        return work.element * _bucket(work)
    return work.element * work.shape.largest_of_all if setting.offload != "none" else 0


def _buckets(work: Workload, setting: Setting) -> float:
    """Returns the bytes that ZeRO holds only in the backward pass, apart from gathered weights, and
    one matrix's gradient that is not yet copied into the bucket.

    Stage 2: a bucket, two on a GPU (for overlap); their flattened copy; the largest slice cast to
    float32; without mixed precision also the own part of this micro-batch's gradients before they
    are added to the sums. (Parameters that straddle two partitions are held by both
    ranks, which is not counted.) Stage 3: the bucket's rearranged copy, and the own part of it
    cast.
    """
    shape, element, own, bucket = (
        work.shape,
        work.element,
        work.shape.trainable / work.world_size,
        _bucket(work),
    )
    gradient = element * shape.largest
    if setting.zero_stage == 0 or (
        setting.zero_stage == 1 and work.mixed and setting.offload == "none"
    ):
        return gradient + 4 * min(_ALLREDUCE_BUCKET, shape.trainable) * (work.world_size > 1)
    if setting.zero_stage == 3:
        return gradient + element * bucket + 4 * bucket / work.world_size * work.mixed
    cast = 4 * min(shape.largest_of_all, own) if work.mixed else 0
    parts = element * own if not work.mixed and setting.offload == "none" else 0
    return gradient + (3 if work.on_gpu else 2) * element * bucket + cast + parts


def _step(work: Workload, setting: Setting) -> float:
    """Returns the bytes that the optimizer's step adds to the states; 0 if it is offloaded.

    First the largest gradient in float64 for its norm; then the own gradients flattened (without
    mixed precision; in stage 3 those of a sub-group). On a CPU torch's AdamW needs two float32
    temporaries of that size after the sums are freed.
    """
    if setting.offload != "none":
        return 0
    stage, own = setting.zero_stage, work.shape.trainable / work.world_size
    whole = work.shape.largest_of_all
    largest = min(whole, own) if stage < 3 else whole / work.world_size
    together = {0: largest, 3: min(SUB_GROUP + largest, own)}.get(stage, own)
    flattened = 4 * together if stage == 3 or (stage > 0 and not work.mixed) else 0
    update = 0 if work.on_gpu else 8 * together + (flattened if stage == 3 else 0)
    return max(8 * largest, flattened, update)


def estimate(work: Workload, setting: Setting) -> Memory:
    """Returns the bytes of one rank, by part."""
    shape, parameters, ranks = work.shape, work.shape.parameters, work.world_size
    trained = shape.trainable
    base = work.element * parameters * work.base_copy
    # The copy's hidden states and a chunk of its distributions, while the loss is computed.
    chunk = activations.GPU_LOGITS if work.on_gpu else activations.CPU_LOGITS
    base_rows = work.base_copy * (work.element * work.rows * shape.hidden + 2 * chunk)
    stage, offload, checkpointing = setting.zero_stage, setting.offload, setting.checkpointing
    precision = Precision(work.element, work.fused, work.on_gpu, work.repeated, work.longest)
    copy = 1 / setting.hpz if setting.hpz > 1 else 0
    always, gathered = _always(work, setting), _gathered(work, setting)
    matrix = work.element * shape.embedding_parameters * (not shape.frozen.head)
    head = work.element * shape.embedding_parameters if gathered else 0
    # With a tied head, its gradient waits for the embedding's.
    working = max(
        work.tokens * activations.working(shape, precision, checkpointing) + matrix * shape.tied,
        activations.head_gradients(shape, precision, work.rows) + head,
    )
    return Memory(
        weights=base
        + (
            0
            if offload == "all"
            else work.element * parameters * (1 / (ranks if stage == 3 else 1) + copy)
        ),
        gradients=gradient_bytes(stage, ranks, work.element, 4, offload) * trained,
        optimizer=optimizer_bytes(stage, ranks) * trained if offload == "none" else 0,
        activations=work.tokens * activations.kept(shape, precision, checkpointing),
        loss=always + gathered + head + activations.head(shape, precision, work.rows) + base_rows,
        backward=always + gathered + working + _buckets(work, setting),
        step=always + _step(work, setting),
        context=CONTEXT_BYTES + NCCL_BYTES * (ranks > 1) if work.on_gpu else PROCESS_BYTES,
        host=host_bytes(trained, ranks, work.element, setting, shape.frozen.parameters),
    )
