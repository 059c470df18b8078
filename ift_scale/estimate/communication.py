"""Bytes that DeepSpeed 0.19.8 sends in one optimizer step, by ZeRO stage.

Derived from its source, with the settings of `train/engine/zero_config.py`. Of P parameters with a
bytes each on N ranks in M micro-batches, with buckets of `memory.BUCKET` elements:

0: gradients are all-reduced once per step in buckets of 5e8 elements
   (engine.buffered_allreduce_fallback).
1: in float32 as stage 2, but once per step; in bfloat16, BF16_Optimizer all-reduces float32 sums
   once per step.
2: in every micro-batch, each bucket's slices are reduced to the rank that owns them, in about
   N + P / bucket calls. On more than `memory.SLICED_UP_TO` ranks whole buckets are all-reduced:
   twice the bytes in fewer calls (use_multi_rank_bucket_allreduce). Once per step the new weights
   are gathered in one call (all_gather_into_tensor).
3: in every micro-batch, each weight is gathered for the forward pass and again for the backward
   pass. Weights that are reused within `memory.LIVE` elements stay gathered: the last LIVE / 2
   (with full checkpointing LIVE / 3, because their forward pass is repeated). Gradients are
   reduce-scattered in buckets in every micro-batch. A call gathers what a module needs together
   with what is prefetched; each matrix of a decoder layer needs at most one call. Parameters of up
   to 1e5 elements stay whole and are gathered after the step.

   With `Setting.hpz`, the ranks of a node keep what the first forward pass of a step has gathered,
   partitioned among them, until the update. All further gathering, in that micro-batch's backward
   pass and in later micro-batches, stays inside the node.

Norms of gradients and overflow checks are scalars: two small all-reduces per step.
"""

import math
from dataclasses import dataclass, replace

from ift_scale.estimate import memory
from ift_scale.estimate.collectives import Collective
from ift_scale.estimate.memory import Setting
from ift_scale.estimate.shape import ModelShape

_ALLREDUCE_BUCKET = 500_000_000


@dataclass(frozen=True)
class Traffic:
    """Collectives of one rank: during each micro-batch's forward and backward pass, after the last
    backward pass, and around the update."""

    forward: tuple[Collective, ...] = ()
    later_forward: tuple[Collective, ...] = ()
    """During the forward passes of all micro-batches except the step's first."""
    backward: tuple[Collective, ...] = ()
    boundary: tuple[Collective, ...] = ()
    """Reductions once per step, after the last backward pass."""
    update: tuple[Collective, ...] = ()


def _calls(kind: str, elements: float, bucket: float, element: int, extra: float = 0) -> Collective:
    """Returns the calls that send `elements` in buckets, with `extra` additional calls."""
    count = max(1.0, math.ceil(elements / bucket) + extra)
    return Collective(kind, element * elements / count, count)  # type: ignore[arg-type]


def gathered_again(shape: ModelShape, setting: Setting) -> float:
    """Returns the elements that a micro-batch's backward pass gathers again under ZeRO-3."""
    kept = memory.LIVE / (3 if setting.checkpointing == "full" else 2)
    return max(0.0, shape.parameters - kept)


def traffic(
    shape: ModelShape, setting: Setting, ranks: int, mixed: bool, whole_buckets: bool | None = None
) -> Traffic:
    """Returns one rank's collectives of a step.

    `mixed`: bfloat16 weights. `whole_buckets`: use_multi_rank_bucket_allreduce; None for the
    trainer's choice at this number of ranks.
    """
    if ranks == 1:
        return Traffic()
    parameters, trained = shape.parameters, shape.trainable
    element, stage = 2 if mixed else 4, setting.zero_stage
    scalars = Collective("all_reduce", 8, 2)
    if stage == 0:
        return Traffic(
            boundary=(_calls("all_reduce", trained, _ALLREDUCE_BUCKET, 4),), update=(scalars,)
        )
    weights = Collective("all_gather", element * trained, 1)
    if stage == 1 and mixed:
        return Traffic(
            boundary=(_calls("all_reduce", trained, _ALLREDUCE_BUCKET, 4),),
            update=(scalars, weights),
        )
    if stage < 3:
        sliced = _calls("reduce", trained, memory.BUCKET, element, ranks - 1)
        whole = memory.whole_buckets(ranks) if whole_buckets is None else whole_buckets
        reduced = _calls("all_reduce", trained, memory.BUCKET, element) if whole else sliced
        where = {"backward" if stage == 2 else "boundary": (reduced,)}
        return Traffic(update=(scalars, weights), **where)
    modules = sum(count * len(layer.products) for layer, count in shape.stack) + 2
    again = gathered_again(shape, setting)
    within = setting.hpz if setting.hpz > 1 else 0
    forward = _calls("all_gather", parameters, parameters, element, modules - 1)
    backward = [_calls("reduce_scatter", trained, memory.BUCKET, element)]
    if again:
        backward.append(
            replace(
                _calls("all_gather", again, again, element, modules * again / parameters - 1),
                within=within,
            )
        )
    norms = sum(count * layer.weights.small for layer, count in shape.stack)
    norms += shape.ends.weights.small
    small = Collective("all_gather", element * norms, 1)
    later = replace(forward, within=within)
    return Traffic(
        forward=(forward,),
        later_forward=(later,),
        backward=tuple(backward),
        update=(scalars, small),
    )
