"""The predicted seconds of one optimizer step on a described machine, by part. Not a measurement.

Computing. Each operation takes the longer of its FLOPs at the machine's rate for its shape and its
bytes at the memory's rate (Williams et al. 2009, doi 10.1145/1498765.1498785). Issuing an operation
takes the host `op_seconds`. On a machine whose device runs asynchronously to its host, the longer
of both totals counts, otherwise their sum.

Overlap. On a machine with overlap, collectives during a pass are hidden by that pass's computation,
except for one call: a bucket can only be sent when it is full, and a weight only be used when it
has arrived. A pass thus takes max(computing, sending) + one call. Reductions once per step (stages
0 and 1) and the gathering of new weights after the update are not hidden. Without overlap (gloo on
a CPU) everything is added up.

The slowest rank of each micro-batch determines its time in stages 2 and 3, in which ranks
synchronise in every micro-batch; in stages 0 and 1 they synchronise once per step.
"""

from collections import Counter as Count
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ift_scale.estimate import collectives
from ift_scale.estimate import flops as work
from ift_scale.estimate.collectives import Collective
from ift_scale.estimate.communication import traffic
from ift_scale.estimate.flops import BatchShape, Op, OpCounter
from ift_scale.estimate.machine import Machine
from ift_scale.estimate.memory import Setting
from ift_scale.estimate.shape import ModelShape


@dataclass(frozen=True)
class Prediction:
    """The result. `parts`: seconds by part, which sum up to the step. `flops`: model FLOPs of all
    ranks, without recomputation."""

    parts: dict[str, float]
    hidden: float
    """Seconds of communication hidden by computation."""
    flops: float
    tokens: float
    ranks: int
    peak_flops: float

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return sum(self.parts.values())

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation, from 0 to 1."""
        return self.flops / (self.seconds * self.ranks * self.peak_flops)

    @property
    def tokens_per_second_per_device(self) -> float:
        return self.tokens / (self.seconds * self.ranks)


@dataclass(frozen=True)
class StepSetup:
    """The model and its settings. `pruned`: the last layer computes supervised rows only."""

    shape: ModelShape
    setting: Setting
    mixed: bool
    pruned: bool
    whole_buckets: bool | None = None
    """As in `communication.traffic`."""

    def counter(self, machine: Machine) -> OpCounter:
        on_gpu = machine.device == "gpu"
        return OpCounter(
            self.shape, 2 if self.mixed else 4, fused=on_gpu, pruned=self.pruned, on_gpu=on_gpu
        )


def predict(job: StepSetup, machine: Machine, step: Sequence[Sequence[BatchShape]]) -> Prediction:
    """Predicts a step.

    `step`: micro-batches, each with the examples of every rank, as in `packing.Step`. A rank
    without examples computes nothing.
    """
    ranks = len(step[0])
    counter = job.counter(machine)
    sent = traffic(job.shape, job.setting, ranks, job.mixed, job.whole_buckets)
    parts: dict[str, float] = defaultdict(float)
    hidden = 0.0
    for number, micro in enumerate(step):
        passes = {batch: _passes(counter, job, machine, batch, ranks) for batch in set(micro)}
        slowest = max(passes.values(), key=lambda parts_of_rank: sum(parts_of_rank.values()))
        _add(parts, slowest)
        gathered = sent.later_forward if number else sent.forward
        for computing, calls in (
            (_forward(slowest), gathered),
            (_backward(slowest), sent.backward),
        ):
            exposed, behind = _exposed(calls, computing, machine, ranks)
            parts["communication"] += exposed
            hidden += behind
    parts["communication"] += _total((*sent.boundary, *sent.update), machine, ranks)
    _add(parts, _grouped(counter.update(job.setting, ranks), machine, ""))
    each, once = work.offload_seconds(job.shape, job.setting, ranks, counter.element, machine)
    parts["offload"] = len(step) * each + once
    counts = Count(batch for micro in step for batch in micro)
    flops = sum(count * _model_flops(counter, batch) for batch, count in counts.items())
    tokens = sum(batch.tokens for micro in step for batch in micro)
    return Prediction(dict(parts), hidden, flops, tokens, ranks, machine.peak_flops)


def _add(sums: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        sums[name] += value


def _model_flops(counter: OpCounter, batch: BatchShape) -> float:
    return work.flops([*counter.forward(batch), *counter.backward(batch), *counter.head(batch)])


def _passes(
    counter: OpCounter, job: StepSetup, machine: Machine, batch: BatchShape, ranks: int
) -> dict[str, float]:
    """Returns one rank's seconds in a micro-batch, by pass and part."""
    if not batch.lengths:
        return _grouped(counter.gradients(job.setting, ranks), machine, "backward ")
    forward = [*counter.forward(batch), *counter.head(batch)]
    recomputed = counter.recomputed(batch, job.setting.checkpointing)
    backward = [*counter.backward(batch), *counter.gradients(job.setting, ranks)]
    parts = _grouped(forward, machine, "forward ") | _grouped(backward, machine, "backward ")
    return parts | {"recomputation": sum(_grouped(recomputed, machine, "").values())}


def _grouped(ops: Sequence[Op], machine: Machine, prefix: str) -> dict[str, float]:
    """Returns seconds by part. The host's time that is not hidden is a part of its own."""
    parts: dict[str, float] = defaultdict(float)
    for op in ops:
        parts[f"{prefix}{op.part}"] += work.seconds(op, machine)
    host = machine.op_seconds * sum(op.count * op.launches for op in ops)
    parts[f"{prefix}host"] = max(0.0, host - sum(parts.values())) if machine.asynchronous else host
    return dict(parts)


def _forward(parts: dict[str, float]) -> float:
    return sum(value for name, value in parts.items() if name.startswith("forward "))


def _backward(parts: dict[str, float]) -> float:
    return sum(value for name, value in parts.items() if not name.startswith("forward "))


def _total(calls: Sequence[Collective], machine: Machine, ranks: int) -> float:
    return sum(collectives.seconds(call, machine, ranks) for call in calls)


def _exposed(
    calls: Sequence[Collective], computing: float, machine: Machine, ranks: int
) -> tuple[float, float]:
    """Returns (seconds of communication that lengthen the pass, hidden seconds)."""
    total = _total(calls, machine, ranks)
    if not machine.overlap or total == 0:
        return total, 0.0
    one = max(collectives.seconds(call, machine, ranks) / call.count for call in calls)
    exposed = min(total, max(0.0, total - computing) + one)
    return exposed, total - exposed
