"""The seconds of one optimizer step, part by part, on a machine that need not be there. A prediction, not a measurement.

Computing. Each operation takes the longer of its FLOPs at the machine's rate for its shape and its bytes at the memory's rate
(Williams et al. 2009, doi 10.1145/1498765.1498785). Issuing operations takes the host `op_seconds` each: on a machine whose
device runs ahead of its host (asynchronous) the longer of both totals counts, else their sum.

Overlap. On a machine that overlaps, what is sent beside a pass hides behind that pass's computing, but for one call: a bucket can
only leave when it is full, a weight only be used when it has come. So a pass takes max(computing, sending) + one call. Boundary
reductions (stages 0 and 1) and the gathering of new weights behind the update hide behind nothing. Where nothing overlaps (gloo on
a CPU) everything is added up.

The slowest rank of each micro-batch decides where ranks meet in it (stages 2 and 3); in stages 0 and 1 they meet once a step.
"""

from collections import Counter as Count
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ift_scale.estimate import collectives
from ift_scale.estimate import flops as work
from ift_scale.estimate.collectives import Collective
from ift_scale.estimate.communication import traffic
from ift_scale.estimate.flops import Counter, MicroBatch, Op
from ift_scale.estimate.machine import Machine
from ift_scale.estimate.memory import Setting
from ift_scale.estimate.shape import ModelShape


@dataclass(frozen=True)
class Prediction:
    """`parts`: seconds by what they go into, whose sum is the step. `flops`: model FLOPs of all ranks, without recomputation."""

    parts: dict[str, float]
    hidden: float
    """Seconds of sending that hide behind computing."""
    flops: float
    tokens: float
    ranks: int
    peak_flops: float

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    @property
    def mfu(self) -> float:
        return self.flops / (self.seconds * self.ranks * self.peak_flops)

    @property
    def tokens_per_second_per_device(self) -> float:
        return self.tokens / (self.seconds * self.ranks)


@dataclass(frozen=True)
class Job:
    """What is trained, and how. `pruned`: the last layer computes supervised rows only."""

    shape: ModelShape
    setting: Setting
    mixed: bool
    pruned: bool
    whole_buckets: bool | None = None
    """As of `zero.traffic`."""

    def counter(self, machine: Machine) -> Counter:
        on_gpu = machine.device == "gpu"
        return Counter(
            self.shape, 2 if self.mixed else 4, fused=on_gpu, pruned=self.pruned, on_gpu=on_gpu
        )


def predict(job: Job, machine: Machine, step: Sequence[Sequence[MicroBatch]]) -> Prediction:
    """`step`: micro-batches, in each the ranks' examples, as `packing.Step` has them. A rank with no example computes nothing."""
    ranks = len(step[0])
    counter = job.counter(machine)
    sent = traffic(job.shape, job.setting, ranks, job.mixed, job.whole_buckets)
    parts: dict[str, float] = defaultdict(float)
    hidden = 0.0
    for number, micro in enumerate(step):
        passes = {batch: _passes(counter, job, machine, batch, ranks) for batch in set(micro)}
        slowest = max(passes.values(), key=lambda found: sum(found.values()))
        _add(parts, slowest)
        gathered = sent.later_forward if number else sent.forward
        for computing, calls in (
            (_forward(slowest), gathered),
            (_backward(slowest), sent.backward),
        ):
            shown, behind = _exposed(calls, computing, machine, ranks)
            parts["communication"] += shown
            hidden += behind
    parts["communication"] += _total((*sent.boundary, *sent.update), machine, ranks)
    _add(parts, _grouped(counter.update(job.setting, ranks), machine, ""))
    each, once = work.offload_seconds(job.shape, job.setting, ranks, counter.element, machine)
    parts["offload"] = len(step) * each + once
    places = Count(batch for micro in step for batch in micro)
    flops = sum(count * _model_flops(counter, batch) for batch, count in places.items())
    tokens = sum(batch.tokens for micro in step for batch in micro)
    return Prediction(dict(parts), hidden, flops, tokens, ranks, machine.peak_flops)


def _add(sums: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        sums[name] += value


def _model_flops(counter: Counter, batch: MicroBatch) -> float:
    return work.flops([*counter.forward(batch), *counter.backward(batch), *counter.head(batch)])


def _passes(
    counter: Counter, job: Job, machine: Machine, batch: MicroBatch, ranks: int
) -> dict[str, float]:
    """One rank's seconds in a micro-batch, by pass and part."""
    if not batch.lengths:
        return _grouped(counter.gradients(job.setting, ranks), machine, "backward ")
    forward = [*counter.forward(batch), *counter.head(batch)]
    again = counter.recomputed(batch, job.setting.checkpointing)
    backward = [*counter.backward(batch), *counter.gradients(job.setting, ranks)]
    found = _grouped(forward, machine, "forward ") | _grouped(backward, machine, "backward ")
    return found | {"recomputation": sum(_grouped(again, machine, "").values())}


def _grouped(ops: Sequence[Op], machine: Machine, prefix: str) -> dict[str, float]:
    """Seconds by part; what the host needs beyond or beside them is a part of its own."""
    found: dict[str, float] = defaultdict(float)
    for op in ops:
        found[f"{prefix}{op.part}"] += work.seconds(op, machine)
    host = machine.op_seconds * sum(op.count * op.launches for op in ops)
    found[f"{prefix}host"] = max(0.0, host - sum(found.values())) if machine.asynchronous else host
    return dict(found)


def _forward(parts: dict[str, float]) -> float:
    return sum(value for name, value in parts.items() if name.startswith("forward "))


def _backward(parts: dict[str, float]) -> float:
    return sum(value for name, value in parts.items() if not name.startswith("forward "))


def _total(calls: Sequence[Collective], machine: Machine, ranks: int) -> float:
    return sum(collectives.seconds(call, machine, ranks) for call in calls)


def _exposed(
    calls: Sequence[Collective], computing: float, machine: Machine, ranks: int
) -> tuple[float, float]:
    """(seconds of sending that the pass is longer for, seconds that hide behind it)."""
    total = _total(calls, machine, ranks)
    if not machine.overlap or total == 0:
        return total, 0.0
    one = max(collectives.seconds(call, machine, ranks) / call.count for call in calls)
    shown = min(total, max(0.0, total - computing) + one)
    return shown, total - shown
