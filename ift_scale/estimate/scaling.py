"""Predictions over cluster sizes: step time, tokens per second, MFU, memory, and where time goes.

One row per size.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ift_scale.config.train import TrainConfig
from ift_scale.estimate import auto
from ift_scale.estimate.flops import BatchShape
from ift_scale.estimate.machine import Machine
from ift_scale.estimate.memory import Memory, Setting, Workload, estimate
from ift_scale.estimate.shape import ModelShape
from ift_scale.estimate.step_time import Prediction, StepSetup, predict

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)

# Mean tokens and supervised share of the authors' engineering set with explanations
# (benchmarks/results/train.json).
EXAMPLE_TOKENS, SUPERVISED_SHARE = 282.0, 0.74


@dataclass(frozen=True)
class Examples:
    """The examples to train on: mean tokens, and the supervised share of them."""

    tokens: float = EXAMPLE_TOKENS
    supervised: float = SUPERVISED_SHARE

    def batch(self, count: float) -> BatchShape:
        """Returns `count` equal examples; a fraction is a shorter example, so that means over ranks
        are possible."""
        whole = int(count)
        sizes = [self.tokens] * whole + ([self.tokens * (count - whole)] if count > whole else [])
        return BatchShape(tuple(sizes), tuple(size * self.supervised for size in sizes))


@dataclass(frozen=True)
class ScalingRow:
    """The prediction for one cluster size.

    `fits`: True if its memory fits by the memory model; None if the device's memory is unknown.
    """

    devices: int
    setting: Setting
    micro_batches: int
    busy: int
    """Number of devices with an example to compute; the others wait."""
    prediction: Prediction
    memory: Memory
    fits: bool | None


def full(examples: Examples, train: TrainConfig, devices: int) -> list[list[BatchShape]]:
    """Returns a step with one micro-batch of `train.tokens_per_micro_batch` tokens per device."""
    count = max(1, int(train.tokens_per_micro_batch / examples.tokens))
    return [[examples.batch(count)] * devices]


def global_batch(examples: Examples, train: TrainConfig, devices: int) -> list[list[BatchShape]]:
    """Returns a step of `train.global_batch_size` examples, evenly assigned to the fewest possible
    micro-batches."""
    capacity = max(1, int(train.tokens_per_micro_batch / examples.tokens))
    micro = -(-train.global_batch_size // (capacity * devices))
    count, left = divmod(train.global_batch_size, micro * devices)
    sizes = [count + (number < left) for number in range(micro * devices)]
    batches = [examples.batch(size) if size else BatchShape((), ()) for size in sizes]
    return [batches[start : start + devices] for start in range(0, micro * devices, devices)]


def row(
    shape: ModelShape,
    train: TrainConfig,
    machine: Machine,
    step: list[list[BatchShape]],
    chosen: Setting | None = None,
    whole_buckets: bool | None = None,
) -> ScalingRow:
    """Returns one prediction. The setting is that of `auto` by default."""
    devices, on_gpu = len(step[0]), machine.device == "gpu"
    memory_bytes = machine.memory_bytes if on_gpu else None
    if chosen is None:
        chosen = auto.weigh(
            shape, auto.Room(memory_bytes, devices, machine.devices_per_node), train
        ).chosen.setting
    work = Workload.of(train, shape, devices, on_gpu)
    memory = estimate(work, chosen)
    job = StepSetup(shape, chosen, work.mixed, train.prune_last_layer, whole_buckets)
    busy = sum(bool(batch.lengths) for batch in step[0])
    fits = None if memory_bytes is None else memory.total <= memory_bytes
    return ScalingRow(devices, chosen, len(step), busy, predict(job, machine, step), memory, fits)


def rows(
    shape: ModelShape,
    train: TrainConfig,
    machine: Machine,
    examples: Examples,
    sizes: Iterable[int] = SIZES,
) -> list[ScalingRow]:
    """Returns predictions for weak scaling: every device computes a full micro-batch."""
    return [row(shape, train, machine, full(examples, train, size)) for size in sizes]
