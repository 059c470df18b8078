"""Predictions over cluster sizes, a row each: step time, tokens a second, MFU, memory, and where the time goes."""

from collections.abc import Iterable
from dataclasses import dataclass

from ift_scale.config import TrainConfig
from ift_scale.estimate import auto
from ift_scale.estimate.flops import MicroBatch
from ift_scale.estimate.machine import Machine
from ift_scale.estimate.memory import Memory, Setting, Workload, estimate
from ift_scale.estimate.shape import ModelShape
from ift_scale.estimate.step_time import Job, Prediction, predict

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)

# Mean length and supervised share of the authors' engineering set with explanations (benchmarks/results/train.json).
EXAMPLE_TOKENS, SUPERVISED_SHARE = 282.0, 0.74


@dataclass(frozen=True)
class Examples:
    """What is trained on: mean tokens of an example, and the share of them that is supervised."""

    tokens: float = EXAMPLE_TOKENS
    supervised: float = SUPERVISED_SHARE

    def batch(self, count: float) -> MicroBatch:
        """`count` equal examples; a part of one is a shorter one, so that means over ranks can be told."""
        whole = int(count)
        sizes = [self.tokens] * whole + ([self.tokens * (count - whole)] if count > whole else [])
        return MicroBatch(tuple(sizes), tuple(size * self.supervised for size in sizes))


@dataclass(frozen=True)
class Row:
    """One cluster size. `fits`: its memory, by the memory model; None where the device's memory is not known."""

    devices: int
    setting: Setting
    micro_batches: int
    busy: int
    """Devices that have an example to compute; the others wait."""
    prediction: Prediction
    memory: Memory
    fits: bool | None


def full(examples: Examples, train: TrainConfig, devices: int) -> list[list[MicroBatch]]:
    """One micro-batch of `train.tokens_per_micro_batch` tokens on every device."""
    count = max(1, int(train.tokens_per_micro_batch / examples.tokens))
    return [[examples.batch(count)] * devices]


def global_batch(examples: Examples, train: TrainConfig, devices: int) -> list[list[MicroBatch]]:
    """`train.global_batch_size` examples, dealt evenly in as few micro-batches as hold them."""
    most = max(1, int(train.tokens_per_micro_batch / examples.tokens))
    micro = -(-train.global_batch_size // (most * devices))
    count, left = divmod(train.global_batch_size, micro * devices)
    places = [
        examples.batch(count + (place < left)) if count + (place < left) else MicroBatch((), ())
        for place in range(micro * devices)
    ]
    return [places[start : start + devices] for start in range(0, micro * devices, devices)]


def row(
    shape: ModelShape,
    train: TrainConfig,
    machine: Machine,
    step: list[list[MicroBatch]],
    chosen: Setting | None = None,
    whole_buckets: bool | None = None,
) -> Row:
    """One prediction; the setting is that of `auto` where none is given."""
    devices, on_gpu = len(step[0]), machine.device == "gpu"
    memory_bytes = machine.memory_bytes if on_gpu else None
    if chosen is None:
        chosen = auto.weigh(
            shape, auto.Room(memory_bytes, devices, machine.devices_per_node), train
        ).chosen.setting
    work = Workload.of(train, shape, devices, on_gpu)
    memory = estimate(work, chosen)
    job = Job(shape, chosen, work.mixed, train.prune_last_layer, whole_buckets)
    busy = sum(bool(batch.lengths) for batch in step[0])
    fits = None if memory_bytes is None else memory.total <= memory_bytes
    return Row(devices, chosen, len(step), busy, predict(job, machine, step), memory, fits)


def rows(
    shape: ModelShape,
    train: TrainConfig,
    machine: Machine,
    examples: Examples,
    sizes: Iterable[int] = SIZES,
) -> list[Row]:
    """Weak scaling: each device a full micro-batch."""
    return [row(shape, train, machine, full(examples, train, size)) for size in sizes]
