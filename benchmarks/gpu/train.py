"""Training steps of Llamas of published shapes on one GPU: tokens per second, MFU, peak memory.

    python -m benchmarks.gpu.train                    (one GPU: 1B, and what fits of 7B)
    python -m benchmarks.gpu.train --rest             (1B under other settings, 3B)
    python -m benchmarks.gpu.train --tiny             (on any machine; shows that it works)

The only input is a seed: weights and tokens are random, with the lengths and supervised share of
peers/train_set.py. First, a small model is compared with plain transformers (exact.py); if it
differs, nothing is measured. The matrix rate is that of a large product in the training dtype,
measured in the same run; FLOPs are those that the loss requires (estimate/shape.py). Writes rows of
`train` on this device after each case (with `--tiny` only to the screen).
"""

import dataclasses
import gc
import json
import time
from typing import Any

import click
import numpy as np
import torch
from transformers import LlamaConfig

from benchmarks.gpu import exact, shapes
from benchmarks.gpu.shapes import Case
from benchmarks.random_llama import build, one_rank, random_set, settings
from benchmarks.suite.rows import Gate, Sheet
from ift_scale.config import TrainConfig
from ift_scale.config.train import Precision
from ift_scale.errors import IFTScaleError
from ift_scale.estimate import auto, memory
from ift_scale.estimate.shape import ModelShape, train_flops
from ift_scale.estimate.shape_of import shape_of
from ift_scale.io.progress import say
from ift_scale.train.data import packing
from ift_scale.train.data.collate import num_shared
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import deepspeed as engines
from ift_scale.train.engine import zero_config
from ift_scale.train.model import kernels

WARM_UP = 2
"""Number of warm-up steps."""
TOLD = ("precision", "zero_stage", "activation_checkpointing", "compile", "tokens_per_micro_batch")
"""Settings stored with every row; kernels and optimizer as resolved by `auto`."""


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Returns FLOPs per second of a product of two size x size matrices, the median of 20."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(25):
        waited(device)
        started = time.perf_counter()
        a @ b
        waited(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / float(np.median(seconds[5:]))


def waited(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _case_shape(case: Case) -> ModelShape:
    return shape_of(LlamaConfig(**case.sizes).to_dict())


def config_of(case: Case, batch: int, precision: Precision, total: float | None) -> TrainConfig:
    """Returns a case's settings with `auto` resolved for a device of `total` bytes.

    Raises EnvironmentProblem if it does not fit.
    """
    changes: dict[str, Any] = {"checkpointing": case.checkpointing, "stage": "auto"} | case.changes
    names = {"activation_checkpointing": "checkpointing", "zero_stage": "stage"}
    values = {names.get(name, name): value for name, value in changes.items()}
    config = settings(precision, batch, case.tokens, **values)
    return auto.resolve(config, _case_shape(case), auto.Room(total, 1, 1))[0]


def measure(
    case: Case,
    config: TrainConfig,
    device: torch.device,
    num_steps: int,
    rate: float,
    profiled: bool,
) -> dict[str, Any]:
    """Returns the seconds of each step after the warm-up, and derived figures."""
    tokens = random_set(config.global_batch_size * (num_steps + WARM_UP), case.sizes["vocab_size"])
    gc.collect()  # a failed case may have left its engine in its frames
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    engine, steps = build(case.sizes, config, device, tokens)
    seconds, losses = [], []
    for step in steps:
        waited(device)
        started = time.perf_counter()
        losses.append(engines.run_step(engine, step, tokens, 1e-5).loss.item())
        waited(device)
        seconds.append(time.perf_counter() - started)
    peaks = (
        [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]
        if device.type == "cuda"
        else [None, None]
    )
    if profiled:
        say(profile(engine, steps[-1], tokens))
    optimizer = zero_config.optimizer_name(engine.deepspeed.optimizer)
    pruned, attention = engine.packed.pruned, engine.packed.attention
    engine.release()
    sizes = _case_shape(case)
    examples = [[i for micro in step for place in micro for i in place] for step in steps[WARM_UP:]]
    shared = [prefixes(step, tokens) for step in steps[WARM_UP:]]
    flops = [
        train_flops(
            sizes,
            tokens.computed_lengths[e].tolist(),
            tokens.supervised_counts[e].tolist(),
            pruned,
            found,
        )
        for e, found in zip(examples, shared, strict=True)
    ]
    timed = seconds[WARM_UP:]
    return {
        "about": {
            "shape": case.name,
            "parameters": sizes.parameters,
            "settings": config.model_dump(include=set(TOLD)),
            "optimizer": optimizer,
            "kernels": chosen_kernels(config, device),
            "attention": attention,
            "last_layer_pruned": pruned,
            "examples_per_step": config.global_batch_size,
            "tokens_per_step": [int(tokens.lengths[e].sum()) for e in examples],
            "matrix_flops_per_second": rate,
            "losses": losses,
        },
        "seconds per step": timed,
        "tokens per second": [
            float(tokens.lengths[e].sum() / s) for e, s in zip(examples, timed, strict=True)
        ],
        "share of the matrix rate": [f / s / rate for f, s in zip(flops, timed, strict=True)],
        "peak memory": peaks[0],
        "peak reserved memory": peaks[1],
        "estimated memory": estimated_bytes(sizes, config, device),
    }


def chosen_kernels(config: TrainConfig, device: torch.device) -> str:
    """Formats the kernels, such as `liger`, or `triton (rms_norm), pytorch (rotary, ...)`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    choice = kernels.choose(
        config.kernels, name, kernels.stored_figures(), kernels.available(device.type)
    )
    if config.compile:
        return f"torch.compile, loss {choice['linear_cross_entropy'].implementation}"
    ops: dict[str, list[str]] = {}
    for op, one in choice.items():
        ops.setdefault(one.implementation, []).append(op)
    return (
        next(iter(ops))
        if len(ops) == 1
        else ", ".join(f"{who} ({', '.join(found)})" for who, found in ops.items())
    )


def profile(engine: engines.TrainEngine, step: packing.Step, tokens: TokenizedSet) -> str:
    """Returns the device's operations that take most time in one step, as text."""
    with torch.profiler.profile() as found:
        engines.run_step(engine, step, tokens, 1e-5)
        waited(engine.device)
    by = "self_cuda_time_total" if engine.device.type == "cuda" else "self_cpu_time_total"
    return found.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=70)


def add(sheet: Sheet, case: str, found: dict[str, Any], gate: Gate) -> None:
    about = found["about"]
    sheet.add(
        case,
        "tokens per second",
        "1/s",
        found["tokens per second"],
        gate,
        better="higher",
        about=about,
    )
    sheet.add(case, "seconds per step", "s", found["seconds per step"], gate, about=about)
    sheet.add(
        case,
        "share of the matrix rate",
        "share",
        found["share of the matrix rate"],
        gate,
        better="higher",
        about=about,
    )
    for name in ("peak memory", "peak reserved memory", "estimated memory"):
        sheet.add(case, name, "B", [found[name]], gate, about=about)


def prefixes(step: packing.Step, tokens: TokenizedSet) -> list[tuple[int, int]]:
    """Returns (tokens, examples) of the prefixes that the step's micro-batches compute once."""
    found = [(num_shared(place, tokens), len(place)) for micro in step for place in micro]
    return [(length, count) for length, count in found if length]


def estimated_bytes(shape: ModelShape, config: TrainConfig, device: torch.device) -> float:
    """Returns the memory model's prediction for the tensors."""
    work = memory.Workload.of(config, shape, 1, device.type == "cuda")
    stage, checkpointing = config.zero_stage, config.activation_checkpointing
    assert stage != "auto" and checkpointing != "auto"  # resolved by `config_of`
    return memory.estimate(work, memory.Setting(stage, "none", checkpointing)).held


def chosen_cases(
    names: tuple[str, ...], rest: bool, card_bytes: float, given: dict[str, Any]
) -> list[Case]:
    """Returns this card's cases, or only the named shapes; cases given by hand come first."""
    cases = [
        case
        for case in (shapes.rest if rest else shapes.first)(card_bytes)
        if not names or case.shape in names
    ]
    known = {case.shape for case in cases}
    cases += [Case(name) for name in names if name not in known]
    return [
        dataclasses.replace(
            case, **{name: value for name, value in given.items() if value is not None}
        )
        for case in cases
    ]


@click.command()
@click.option(
    "--shape",
    "names",
    multiple=True,
    type=click.Choice([name for name in shapes.SHAPES if name != "tiny"]),
)
@click.option("--rest", is_flag=True, help="Other settings and shapes than the first ones.")
@click.option(
    "--steps",
    default=6,
    show_default=True,
    help="Measured optimizer steps, after two for warming up.",
)
@click.option("--batch", default=128, show_default=True, help="Examples per step.")
@click.option(
    "--tokens", type=int, help="Tokens of a micro-batch, at most; as fits each shape when left out."
)
@click.option("--layers", type=int, help="Of the shape only its first so many layers.")
@click.option("--checkpointing", type=click.Choice(["auto", "none", "selective", "full"]))
@click.option("--profile", "profiled", is_flag=True, help="Also print a profile of one step.")
@click.option("--tiny", is_flag=True, help="Tiny sizes, in float32, nothing stored.")
def main(
    names: tuple[str, ...],
    rest: bool,
    steps: int,
    batch: int,
    profiled: bool,
    tiny: bool,
    **given: Any,
) -> None:
    """Measure, and store this device's rows of `train`."""
    device = one_rank()
    if device.type != "cuda" and not tiny:
        raise click.UsageError("no GPU found; --tiny works on any machine")
    differences = {
        precision: exact.difference(device, precision, []) for precision in exact.TOLERANCE
    }
    say(f"(losses, gradient) against plain transformers in float32: {differences}")
    if any(
        gap > most
        for name, gaps in differences.items()
        for gap, most in zip(gaps, exact.TOLERANCE[name], strict=True)
    ):
        raise SystemExit("training is not exact: nothing is measured")
    precision: Precision = "float32" if tiny else "bfloat16"
    size = 512 if tiny else 8192
    gate = Gate(
        checked="tokens' losses against plain transformers', by their spread",
        gap=differences[precision][0],
        tolerance=exact.TOLERANCE[precision][0],
    )
    rate = matrix_rate(device, getattr(torch, precision), size)
    say(f"matrix rate: {rate / 1e12:.2f} TFLOP/s")
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    cases = chosen_cases(names, rest, total or 0, given)
    if tiny:
        cases, steps, batch = [Case("tiny", 2048)], 2, 8
    sheet = Sheet("train", tiny, "cpu" if tiny else torch.cuda.get_device_name(device))
    for case in cases:
        name = ", ".join(
            [f"{case.name} {precision}", *(f"{key} {value}" for key, value in case.changes.items())]
        )
        try:
            config = config_of(case, batch, precision, total)
            found = measure(case, config, device, steps, rate, profiled)
        except (
            IFTScaleError,
            torch.OutOfMemoryError,
            RuntimeError,
        ) as error:  # continue with the next case
            reason = " ".join(str(error).split())[:300]
            say(f"{name}: not measured: {type(error).__name__}: {reason}")
            continue
        say(f"{name}: {json.dumps(found)}")
        if not tiny:
            add(sheet, name, found, gate)
            sheet.store()  # after each case: a time limit may end a later one


if __name__ == "__main__":
    main()
