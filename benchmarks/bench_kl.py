"""What the divergence from the base model (`train.kl`) adds to an optimizer step.

    python -m benchmarks.bench_kl [--repeats 5]

One rank on a CPU with one thread, ZeRO-2, float32, a random Llama, steps of one micro-batch. Each
repeat runs the same step without the divergence, with it from a cache of the base's 64 most
probable tokens, and with it from a frozen copy, by the same engine with a learning rate of 0, so
that all three compute the same. Seconds are CPU seconds of the process, and a ratio is of one
repeat. Half of the model's products are in its head, whose rows the divergence passes over; in
larger models that share, and so the cache's cost, is smaller.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.bench_memory import llama
from benchmarks.random_llama import build, one_rank, random_set, settings
from benchmarks.suite.rows import OURS, Gate, Sheet
from ift_scale.config.train import KLConfig
from ift_scale.io.progress import say
from ift_scale.records import Arm
from ift_scale.train import job
from ift_scale.train.data import dataset
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import deepspeed as engines
from ift_scale.train.kl.parts import StepPenalty
from ift_scale.train.kl.penalty import KLPenalty

SHAPE = (256, 704, 4, 16_384, False)
EXAMPLES, TOP_K = 6, 64
LOSS_TOLERANCE, LARGEST_DIVERGENCE = 1e-6, 1e-5
KINDS = ("without", "cache", "copy")


class _Alone:
    """The collectives of one rank."""

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None:
        return


def cached(
    engine: engines.TrainEngine, tokens: TokenizedSet, folder: Path
) -> tuple[StepPenalty, float]:
    """Returns the penalty with a cache that is computed now, and the CPU seconds for that."""
    dataset.save(tokens, folder / "tokens")
    arm = job.ArmJob(
        arm=Arm(domain="d", setting="s", seed=0),
        source="",
        tokens=str(folder / "tokens"),
        folder=str(folder),
        key="",
        inputs={},
        kl=job.KLJob(cache=str(folder / "kl"), base="random", tokenizer="none"),
    )
    train = engine.config.model_copy(update={"kl": KLConfig(weight=0.1, top_k=TOP_K)})
    work = job.Job(
        model_path="", hidden_size=SHAPE[0], template="", logs="", train=train, arms=[arm]
    )
    penalty = KLPenalty(work, arm, tokens, 1, 1)
    started = time.process_time()
    penalty.prepare(engine, _Alone())  # type: ignore[arg-type]
    return penalty.of(0), time.process_time() - started


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="Only show that it works.")
def main(repeats: int, quick: bool) -> None:
    """Store the rows of `kl`."""
    torch.set_num_threads(1)
    device = one_rank()
    torch.set_num_threads(1)
    tokens = random_set(EXAMPLES, SHAPE[3])
    config = settings(
        "float32", EXAMPLES, 8192, kl=KLConfig(weight=0.1, base="copy"), kernels="pytorch"
    )
    engine, steps = build(llama(*SHAPE), config, device, tokens)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    gap = largest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        from_cache, filling = cached(engine, tokens, Path(folder))
        penalties = {"without": None, "cache": from_cache, "copy": StepPenalty(0.1, None, None)}
        for repeat in range(-1, repeats):  # the first is a warm-up
            losses = []
            for number in range(len(KINDS)):
                kind = KINDS[(repeat + number) % len(KINDS)]
                started = time.process_time()
                result = engines.run_step(engine, steps[0], tokens, 0.0, penalties[kind])
                if repeat >= 0:
                    seconds[kind].append(time.process_time() - started)
                losses.append(float(result.loss))
                largest = max([largest, *map(float, result.divergences.values())])
            gap = max(gap, max(losses) / min(losses) - 1)
    if gap > LOSS_TOLERANCE or abs(largest) > LARGEST_DIVERGENCE:
        raise SystemExit(f"losses differ by {gap:.1e}, divergence {largest:.1e}: nothing is stored")
    checked = (
        "relative difference of the losses of all three, whose divergence is below "
        f"{LARGEST_DIVERGENCE:g}"
    )
    gate = Gate(checked=checked, gap=gap, tolerance=LOSS_TOLERANCE)
    sheet, case = Sheet("kl", quick), f"Llama {SHAPE[0]} x {SHAPE[2]}, vocabulary {SHAPE[3]:,}"
    for kind in KINDS:
        sheet.add(case, f"CPU seconds of a step, {kind}", "s", seconds[kind], gate, OURS)
    for kind in KINDS[1:]:
        added = [
            100 * (with_kl / plain - 1)
            for with_kl, plain in zip(seconds[kind], seconds["without"], strict=True)
        ]
        sheet.add(case, f"added to a step, {kind}", "%", added, gate, OURS)
        say(f"{kind}: {sorted(added)} % of {seconds['without']}")
    sheet.add(case, "CPU seconds to fill the cache", "s", [filling], gate, OURS)
    say(f"{sheet.store()}: written")


if __name__ == "__main__":
    main()
