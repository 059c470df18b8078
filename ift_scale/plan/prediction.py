"""The part of `ift-scale plan` that a machine's description makes possible: the step's seconds on GPUs that need not be there."""

from ift_scale.config import TrainConfig
from ift_scale.estimate import scaling
from ift_scale.estimate.machine import Machine
from ift_scale.estimate.shape import ModelShape
from ift_scale.io.progress import say
from ift_scale.plan import tables


def print_prediction(
    shape: ModelShape,
    train: TrainConfig,
    machine: Machine,
    devices: int,
    examples: scaling.Examples,
) -> None:
    """Two tables over 8 to 1,024 devices and `devices`: a full micro-batch on each, and the run's own steps."""
    kind = (
        "measured on it"
        if machine.measured
        else "from data sheets and estimates: no GPU has been measured"
    )
    say(f"predicted  on {machine.name}, not measured. Rates {kind} (docs/simulator.md).")
    mean = f"examples of {examples.tokens:g} tokens, {examples.supervised:.0%} of them supervised"
    sizes = sorted({devices, *(scaling.SIZES if machine.between is not None else ())})
    say(
        f"           One full micro-batch of {train.tokens_per_micro_batch:,} tokens a GPU and step, {mean}:"
    )
    tables.show(tables.scaling(scaling.rows(shape, train, machine, examples, sizes)))
    say(
        f"           The run's steps: {train.global_batch_size:,} examples each, whatever the number of GPUs:"
    )
    steps = [scaling.global_batch(examples, train, size) for size in sizes]
    tables.show(tables.scaling([scaling.row(shape, train, machine, step) for step in steps]))
