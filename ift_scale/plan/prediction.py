"""The part of `ift-scale plan` for a described machine: the predicted time of a step."""

from collections.abc import Sequence

from rich.table import Table

from ift_scale.config.train import TrainConfig
from ift_scale.estimate import scaling
from ift_scale.estimate.machine import Machine
from ift_scale.estimate.shape import ModelShape
from ift_scale.io.progress import say
from ift_scale.plan.text import GIB, new_table, show


def print_prediction(
    shape: ModelShape,
    train: TrainConfig,
    machine: Machine,
    devices: int,
    examples: scaling.Examples,
) -> None:
    """Prints two tables over 8 to 1,024 devices and `devices`: a full micro-batch per device, and
    the run's own steps."""
    kind = (
        "measured on it"
        if machine.measured
        else "from data sheets and estimates: no GPU has been measured"
    )
    say(f"predicted  on {machine.name}, not measured. Rates {kind} (docs/simulator.md).")
    mean = f"examples of {examples.tokens:g} tokens, {examples.supervised:.0%} of them supervised"
    sizes = sorted({devices, *(scaling.SIZES if machine.between is not None else ())})
    say(
        f"           One full micro-batch of {train.tokens_per_micro_batch:,} tokens per GPU and "
        f"step, {mean}:"
    )
    show(scaling_table(scaling.rows(shape, train, machine, examples, sizes)))
    say(
        f"           The run's steps: {train.global_batch_size:,} examples each on any number of "
        "GPUs:"
    )
    steps = [scaling.global_batch(examples, train, size) for size in sizes]
    show(scaling_table([scaling.row(shape, train, machine, step) for step in steps]))


_PARTS = {
    "matrices": ("forward matrices", "backward matrices"),
    "attention": ("forward attention", "backward attention"),
    "head": ("forward head",),
    "other": ("forward passes", "backward passes", "backward gradients"),
    "again": ("recomputation",),
    "update": ("update", "offload"),
    "host": ("forward host", "backward host", "host"),
    "sending": ("communication",),
}


def scaling_table(rows: Sequence[scaling.ScalingRow]) -> Table:
    """Returns one row per cluster size; the parts are shares of the step."""
    table = new_table(
        ("GPUs", "ZeRO", "recompute", "offload"),
        ("GiB", "micro", "idle", "step s", "tok/s/GPU", "MFU"),
    )
    table.padding = (0, 1, 0, 0)
    for name in _PARTS:
        table.add_column(name, justify="right")
    for row in rows:
        prediction, setting = row.prediction, row.setting
        shares = [
            sum(prediction.parts.get(part, 0.0) for part in parts) / prediction.seconds
            for parts in _PARTS.values()
        ]
        table.add_row(
            str(row.devices),
            setting.stage,
            setting.checkpointing,
            setting.offload,
            f"{row.memory.total / GIB:.0f}" + ("" if row.fits is not False else "!"),
            str(row.micro_batches),
            str(row.devices - row.busy or ""),
            f"{prediction.seconds:.3g}",
            f"{prediction.tokens_per_second_per_device:,.0f}",
            f"{prediction.mfu:.1%}",
            *(f"{share:.0%}" for share in shares),
        )
    return table
