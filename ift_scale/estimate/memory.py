"""The memory model: the bytes that one rank holds, part by part, for a model, a world size and a setting. Pure arithmetic.

What is held is read off DeepSpeed 0.19.8's source (runtime/zero/{stage_1_and_2,stage3}.py, runtime/bf16_optimizer.py), with P the
parameters and N the ranks. Checked against measurement: bytes a parameter at N = 1 of stage 2 with float32 accumulation (18) and
of stage 3 with bfloat16 accumulation (16, and 4 for each of a sub-group's); the bytes saved on a CPU for activations; each
moment's peak on a CPU (benchmarks/bench_memory.py). The constants below are estimates, and no peak of a GPU was measured.

States are held all along. Beside them a step has three moments, each gone before the next, of which the dearest counts: the loss,
when all layers' activations are held and a chunk of logits; the backward pass, with ZeRO's buckets; and the optimizer's step.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ift_scale.config import TrainConfig
from ift_scale.estimate import activations
from ift_scale.estimate.activations import Checkpointing, Precision
from ift_scale.estimate.shape import ModelShape

GIB = 2**30

# Settings of ZeRO that decide about memory, in elements; `zero` puts them into DeepSpeed's configuration.
BUCKET = 200_000_000
SUB_GROUP = 100_000_000
LIVE = 1_000_000_000
PREFETCH = 100_000_000

# Ranks up to which ZeRO-1 and 2 reduce a bucket's slices to their owners: half the bytes of all-reducing whole buckets, but a call
# for every owner, whose latency grows with the ranks too. By the cost model, not measured: slices win up to 64 ranks under every
# load; beyond, where they win at all, it is by less than 1% but for a step that hides nothing on 128 A100 (docs/simulator.md).
SLICED_UP_TO = 64

# DeepSpeed's own bucket of whole gradients where there is no ZeRO-2 or 3 (engine.py, MEMORY_OPT_ALLREDUCE_SIZE).
_ALLREDUCE_BUCKET = 500_000_000

# Estimates: CUDA context with the libraries' workspaces; NCCL's channels; what the caching allocator loses of what comes and goes.
CONTEXT_BYTES = 1.0 * GIB
NCCL_BYTES = 1.0 * GIB
# Measured: what a rank on a CPU has taken when it has imported everything.
PROCESS_BYTES = 0.3 * GIB
FRAGMENTATION_SHARE = 0.1

Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class Setting:
    """What `auto` decides: each a value of the train section."""

    zero_stage: int
    offload: Offload
    checkpointing: Checkpointing
    hpz: int = 1
    """Ranks that hold all weights among them a second time (ZeRO++'s hierarchical partition, stage 3); 1: none do."""

    @property
    def stage(self) -> str:
        """`3, hpZ` if the weights are held a second time, else the number alone."""
        return f"{self.zero_stage}{', hpZ' if self.hpz > 1 else ''}"

    def __str__(self) -> str:
        moved = "no offload" if self.offload == "none" else f"offload {self.offload}"
        copies = f", weights held once per {self.hpz} ranks" if self.hpz > 1 else ""
        return f"ZeRO-{self.zero_stage}{copies}, {self.checkpointing} activation checkpointing, {moved}"


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
    repeated: bool = False
    """Keys and values are repeated for grouped attention."""

    @classmethod
    def of(
        cls, config: TrainConfig, shape: ModelShape, world_size: int, on_gpu: bool
    ) -> "Workload":
        """Of a configuration. All tokens may be supervised; whoever computes an op of `kernels`, it keeps its inputs only."""
        mixed = config.precision == "bfloat16" or (config.precision == "auto" and on_gpu)
        tokens = config.tokens_per_micro_batch
        repeated = shape.kv_heads < shape.heads and repeats_keys(config.attention, mixed and on_gpu)
        return cls(shape, world_size, mixed, shape.fused_mlp, tokens, tokens, on_gpu, repeated)

    @property
    def element(self) -> int:
        """Bytes of a weight and of an activation."""
        return 2 if self.mixed else 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: on its device, and in host memory for what is offloaded.

    `activations`: those kept from the forward to the backward pass. `loss` and `backward`: what these moments add to them; `step`:
    what the optimizer's step adds to the states, when activations are gone.
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
    def dearest(self) -> float:
        """What comes and goes, at its most."""
        return max(self.activations + max(self.loss, self.backward), self.step)

    @property
    def held(self) -> float:
        """By tensors, at the most: what torch says it has allocated."""
        return self.weights + self.gradients + self.optimizer + self.dearest

    @property
    def fragmentation(self) -> float:
        return FRAGMENTATION_SHARE * self.dearest

    @property
    def total(self) -> float:
        """On the device."""
        return self.held + self.fragmentation + self.context


def repeats_keys(attention: str, on_gpu: bool) -> bool:
    """True if `train.attention` computes grouped attention with repeated keys and values: by SDPA, which `auto` takes outside of a
    GPU in bfloat16, and by a `varlen_attn` of torch that does not group heads itself."""
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
    """True if torch's `varlen_attn` has `enable_gqa` (torch 2.11 has not). Read from its source: importing torch takes seconds."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return True
    source = Path(torch.origin).parent / "nn" / "attention" / "varlen.py"
    return not source.is_file() or "enable_gqa" in source.read_text(encoding="utf-8")


def whole_buckets(world_size: int) -> bool:
    """Whether ZeRO-1 and 2 all-reduce whole buckets over so many ranks."""
    return world_size > SLICED_UP_TO


def gradient_bytes(
    stage: int, world_size: int, element: int, accumulation: int, offload: Offload
) -> float:
    """Bytes a parameter of gradients on the device, from one micro-batch to the next.

    0: the gradients themselves. 1: whole on every rank; in mixed precision BF16_Optimizer holds float32 sums beside the bfloat16
    gradients (where the optimizer is offloaded, ZeRO-1 holds the sums alone). 2: the sums of the own part. 3: one flat buffer, in
    host memory with the optimizer.
    """
    if stage == 0:
        return element
    if stage == 1:
        return accumulation + (element if offload == "none" and element != accumulation else 0)
    if offload == "none":
        return accumulation / world_size
    return accumulation / world_size if stage == 2 and element != accumulation else 0


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


def _gathered(work: Workload, setting: Setting) -> float:
    """Bytes of weights that ZeRO-3 gathers: `LIVE` and what one fetch overshoots it by, with a prefetch's copy.

    On one rank nothing is gathered: weights are where they are used, unless they are offloaded.
    """
    if setting.zero_stage < 3 or (work.world_size == 1 and setting.offload != "all"):
        return 0
    return work.element * min(LIVE + 2 * _matrix(work.shape) + PREFETCH, work.shape.parameters)


def _matrix(shape: ModelShape) -> int:
    """Elements of a layer's largest weight."""
    return shape.hidden * max(shape.intermediate, shape.q_size)


def _bucket(work: Workload) -> float:
    """Elements of a bucket; a CPU's pages are taken when they are written."""
    return BUCKET if work.on_gpu else min(BUCKET, work.shape.parameters)


def _always(work: Workload, setting: Setting) -> float:
    """Bytes that ZeRO takes at its start and keeps: stage 3 its bucket; stage 1 and 2, offloaded, room for the largest gradient."""
    if setting.zero_stage == 3:
        return work.element * _bucket(work)
    return work.element * work.shape.embedding_parameters if setting.offload != "none" else 0


def _buckets(work: Workload, setting: Setting) -> float:
    """Bytes of what ZeRO holds in the backward pass alone, beside gathered weights, and one matrix' gradient on its way into it.

    Stage 2: a bucket, on a GPU two (communication overlaps); their flattened copy; the largest slice cast to float32; without mixed
    precision the own part of this micro-batch's gradients, before they are added to the sums (whole parameters: where one lies in
    two parts, both ranks hold all of it, which is not counted). Stage 3: the bucket's rearranged copy, and the own part of it cast.
    """
    shape, element, own, bucket = (
        work.shape,
        work.element,
        work.shape.parameters / work.world_size,
        _bucket(work),
    )
    gradient = element * _matrix(shape)
    if setting.zero_stage == 0 or (
        setting.zero_stage == 1 and work.mixed and setting.offload == "none"
    ):
        return gradient + 4 * min(_ALLREDUCE_BUCKET, shape.parameters) * (work.world_size > 1)
    if setting.zero_stage == 3:
        return gradient + element * bucket + 4 * bucket / work.world_size * work.mixed
    cast = 4 * min(shape.embedding_parameters, own) if work.mixed else 0
    parts = element * own if not work.mixed and setting.offload == "none" else 0
    return gradient + (3 if work.on_gpu else 2) * element * bucket + cast + parts


def _step(work: Workload, setting: Setting) -> float:
    """Bytes that the optimizer's step adds to the states; offloaded, it is the host's.

    The largest gradient in float64, for its norm; then the own gradients flattened (without mixed precision; stage 3: those of a
    sub-group). On a CPU torch's AdamW takes two float32 temporaries of that, when the sums they were flattened from are gone.
    """
    if setting.offload != "none":
        return 0
    stage, own = setting.zero_stage, work.shape.parameters / work.world_size
    largest = (
        min(work.shape.embedding_parameters, own)
        if stage < 3
        else work.shape.embedding_parameters / work.world_size
    )
    together = {0: largest, 3: min(SUB_GROUP + largest, own)}.get(stage, own)
    flattened = 4 * together if stage == 3 or (stage > 0 and not work.mixed) else 0
    update = 0 if work.on_gpu else 8 * together + (flattened if stage == 3 else 0)
    return max(8 * largest, flattened, update)


def estimate(work: Workload, setting: Setting) -> Memory:
    """Bytes of one rank, part by part."""
    shape, parameters, ranks = work.shape, work.shape.parameters, work.world_size
    stage, offload, checkpointing = setting.zero_stage, setting.offload, setting.checkpointing
    precision = Precision(work.element, work.fused, work.on_gpu, work.repeated)
    copy = 1 / setting.hpz if setting.hpz > 1 else 0
    always, gathered = _always(work, setting), _gathered(work, setting)
    matrix = work.element * shape.embedding_parameters
    head = matrix if gathered else 0
    working = max(
        work.tokens * activations.working(shape, precision, checkpointing)
        + matrix * shape.tied,  # it waits for the embedding's
        activations.head_gradients(shape, precision, work.rows) + head,
    )
    return Memory(
        weights=0
        if offload == "all"
        else work.element * parameters * (1 / (ranks if stage == 3 else 1) + copy),
        gradients=gradient_bytes(stage, ranks, work.element, 4, offload) * parameters,
        optimizer=optimizer_bytes(stage, ranks) * parameters if offload == "none" else 0,
        activations=work.tokens * activations.kept(shape, precision, checkpointing),
        loss=always + gathered + head + activations.head(shape, precision, work.rows),
        backward=always + gathered + working + _buckets(work, setting),
        step=always + _step(work, setting),
        context=CONTEXT_BYTES + NCCL_BYTES * (ranks > 1) if work.on_gpu else PROCESS_BYTES,
        host=host_bytes(parameters, ranks, work.element, setting),
    )
