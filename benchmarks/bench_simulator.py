"""The simulator (ift_scale/estimate) compared with measured steps of the trainer on this machine.

    python -m benchmarks.bench_simulator [runs/simulator] [--clock cpu]
        [--machines configs/machines]

For each world size, one process group with one thread per rank measures the machine's rates, then
DeepSpeed steps over a grid of models, ZeRO stages, token counts and checkpointing, then the rates
again. Every step is predicted from the median of both calibrations without fitting to the steps;
the error of every point is stored. Writes the rows of `simulator`, results/simulator.json, from
which a test predicts again, and one machine file per world size. A second prediction has one fitted
factor (on the host's seconds) and is evaluated by leave-one-out.
"""

import itertools
import json
import math
import os
import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np
from torch.multiprocessing.spawn import spawn

from benchmarks import calibrate
from benchmarks.suite.rows import MEASURED, PREDICTED, Gate, Sheet, store_inputs
from ift_scale.config import TrainConfig
from ift_scale.estimate.flops import BatchShape
from ift_scale.estimate.machine import Machine
from ift_scale.estimate.memory import Setting
from ift_scale.estimate.shape import ModelShape
from ift_scale.estimate.step_time import StepSetup, predict
from ift_scale.io.files import write_json
from ift_scale.ranks import environment
from ift_scale.train.data.dataset import TokenizedSet

# hidden, intermediate, layers, heads, key-value heads, vocabulary
MODELS = {
    "0.5M": (96, 256, 3, 4, 4, 1_200),
    "5M": (256, 704, 4, 4, 2, 8_000),
    "22M": (320, 864, 4, 5, 5, 32_000),
}
STAGES = {1: (0, 2), 2: (0, 1, 2, 3)}
LOADS_OF = {1: ("8 x 64", "8 x 256", "2 x 8 x 128"), 2: ("8 x 64", "2 x 8 x 128")}
# Examples per rank and micro-batch, their mean tokens, number of micro-batches.
LOADS = {"8 x 64": (8, 64, 1), "8 x 256": (8, 256, 1), "2 x 8 x 128": (8, 128, 2)}
STEPS, MAX_LENGTH = 4, 512


def grid(world_size: int) -> list[dict[str, Any]]:
    points = [
        {"model": model, "stage": stage, "load": load, "checkpointing": "none"}
        for model, stage, load in itertools.product(
            MODELS, STAGES[world_size], LOADS_OF[world_size]
        )
    ]
    return points + [
        {"model": "5M", "stage": 2, "load": "8 x 256", "checkpointing": how}
        for how in ("selective", "full")
    ]


def tokens_of(vocab: int, load: str, world_size: int) -> TokenizedSet:
    """Returns examples for STEPS steps with lengths of 0.5 to 1.5 means; 40% are supervised."""
    count, mean, micro = LOADS[load]
    rng = np.random.default_rng(0)
    lengths = rng.integers(mean // 2, 3 * mean // 2, STEPS * count * micro * world_size)
    supervised = np.concatenate([np.arange(n) >= 0.6 * n for n in lengths])
    ids = rng.integers(0, vocab, int(lengths.sum()), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenizedSet(ids, supervised, offsets, np.ones(len(lengths)), 0)


def config_of(point: dict[str, Any], world_size: int, tokens: TokenizedSet) -> TrainConfig:
    count, _, micro = LOADS[point["load"]]
    longest = [tokens.lengths[i::STEPS].sum() / (world_size * micro) for i in range(STEPS)]
    return TrainConfig(
        zero_stage=point["stage"],
        offload="none",
        activation_checkpointing=point["checkpointing"],
        epochs=1,
        global_batch_size=count * micro * world_size,
        tokens_per_micro_batch=int(1.3 * max(longest)),
        max_length=MAX_LENGTH,
        share_prefix=False,
    )


def batches(step: Any, tokens: TokenizedSet) -> list[list[BatchShape]]:
    lengths, rows = tokens.computed_lengths.tolist(), tokens.supervised_counts.tolist()
    return [
        [
            BatchShape(tuple(lengths[i] for i in chunk), tuple(rows[i] for i in chunk))
            for chunk in micro
        ]
        for micro in step
    ]


def _run_point(
    point: dict[str, Any], folder: Path, ranks: Any, device: Any, timed: calibrate.Stopwatch
) -> dict[str, Any]:
    """Returns the slowest rank's seconds of each step but the first, and the steps' contents."""
    import torch
    import torch.distributed as dist

    from ift_scale.train.data import packing
    from ift_scale.train.engine import deepspeed
    from ift_scale.train.model.packed import read_weights

    model = folder / point["model"]
    tokens = tokens_of(MODELS[point["model"]][-1], point["load"], ranks.world_size)
    config = config_of(point, ranks.world_size, tokens)
    hidden = MODELS[point["model"]][0]
    steps = packing.planned_steps(tokens.computed_lengths, config, ranks.world_size, hidden, 0)
    built = deepspeed.build(model, read_weights(model), config, device, ranks, max(map(len, steps)))
    seconds = []
    for number, step in enumerate([steps[0], *steps]):
        dist.barrier()
        started = timed.now()
        deepspeed.run_step(built, step, tokens, 1e-4)
        spent = torch.tensor(timed.now() - started, dtype=torch.float64)
        dist.all_reduce(spent, dist.ReduceOp.MAX)
        seconds += [float(spent)] if number else []
    built.release()
    return point | {"seconds": seconds, "micro_batches": [len(step) for step in steps]}


def _measure(
    rank: int,
    world_size: int,
    launch: dict[str, str],
    folder: Path,
    timed: calibrate.Stopwatch,
    points: list[dict[str, Any]],
) -> None:
    os.environ |= launch | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    import torch
    import torch.distributed as dist

    from ift_scale.ranks.rendezvous import Rendezvous
    from ift_scale.train.process_group import join

    ranks = environment.from_environment()
    assert ranks is not None
    device = join(Rendezvous(ranks, folder))
    torch.set_num_threads(1)
    for name in ("before", "points", "after"):
        path = folder / f"{world_size}-{name}.json"
        if path.is_file():
            continue
        found: Any = calibrate.rates(timed) if name != "points" else None
        if name == "points":
            found = [_run_point(point, folder, ranks, device, timed) for point in points]
        dist.barrier()
        if rank == 0:
            write_json(path, found)


def write_models(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, (hidden, intermediate, layers, heads, kv_heads, vocab) in MODELS.items():
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=vocab,
            max_position_embeddings=MAX_LENGTH,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)


def shape_of(model: str) -> ModelShape:
    hidden, intermediate, layers, heads, kv_heads, vocab = MODELS[model]
    return ModelShape.dense(
        hidden, intermediate, layers, heads, kv_heads, hidden // heads, vocab, tied=False
    )


def both(first: Any, second: Any) -> Any:
    """Combines two calibrations by geometric means; JSON has turned sizes into text."""
    if isinstance(first, dict):
        return {
            int(name) if name.isdigit() else name: both(first[name], second[name]) for name in first
        }
    return math.sqrt(first * second)


def predicted(point: dict[str, Any], machine: Machine, world_size: int) -> dict[str, Any]:
    """Adds the prediction: medians over steps, and the error relative to the measurement."""
    from ift_scale.train.data import packing

    tokens = tokens_of(MODELS[point["model"]][-1], point["load"], world_size)
    config = config_of(point, world_size, tokens)
    steps = packing.planned_steps(
        tokens.computed_lengths, config, world_size, MODELS[point["model"]][0], 0
    )
    job = StepSetup(
        shape_of(point["model"]),
        Setting(point["stage"], "none", point["checkpointing"]),
        mixed=False,
        pruned=True,
    )
    found = [predict(job, machine, batches(step, tokens)) for step in steps]
    middle = sorted(found, key=lambda one: one.seconds)[len(found) // 2]
    measured = statistics.median(point["seconds"])
    seconds = statistics.median(one.seconds for one in found)
    host = sum(value for name, value in middle.parts.items() if name.endswith("host"))
    return point | {
        "world_size": world_size,
        "measured": measured,
        "predicted": seconds,
        "error": seconds / measured - 1,
        "host": host,
        "communication": middle.parts["communication"],
        "model_flops": middle.flops,
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the points as rows of docs/simulator.md."""
    return [
        f"| {row['world_size']} | {row['model']} | {row['stage']} | {row['checkpointing']} "
        f"| {row['load']} | {row['measured']:.3f} | {row['predicted']:.3f} | {row['error']:+.0%} |"
        for row in rows
    ]


def fitted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Fits one factor on the host's seconds, which are calibrated without modules and hooks.

    Least squares of relative errors; each point is judged by the factor of all others.
    """

    def factor(chosen: list[dict[str, Any]]) -> float:
        slope = np.array([row["host"] / row["measured"] for row in chosen])
        target = np.array(
            [1 - (row["predicted"] - row["host"]) / row["measured"] for row in chosen]
        )
        return max(0.0, float(slope @ target / (slope @ slope)))

    errors = [
        (row["predicted"] + (factor(rows[:i] + rows[i + 1 :]) - 1) * row["host"]) / row["measured"]
        - 1
        for i, row in enumerate(rows)
    ]
    return {"host_factor": factor(rows), "leave_one_out": errors, **summary(errors)}


def summary(errors: list[float]) -> dict[str, float]:
    sizes = [abs(error) for error in errors]
    return {
        "median_absolute_error": statistics.median(sizes),
        "worst_absolute_error": max(sizes),
        "mean_error": statistics.mean(errors),
    }


def rows_of(sheet: Sheet, result: dict[str, Any]) -> Sheet:
    """Adds every point's seconds, measured and predicted."""
    for row in result["points"]:
        case = (
            f"{row['model']}, ZeRO-{row['stage']}, {row['load']}, checkpointing "
            f"{row['checkpointing']}, {row['world_size']} ranks"
        )
        gate = Gate(checked="error of the prediction, reported only", gap=abs(row["error"]))
        clock = f"seconds per step ({result['clock']} clock)"
        sheet.add(
            case,
            clock,
            "s",
            row["seconds"],
            gate,
            MEASURED,
            about={"model_flops": row["model_flops"]},
        )
        sheet.add(case, clock, "s", [row["predicted"]], gate, PREDICTED)
    return sheet


def measured(
    world_size: int, folder: Path, timed: calibrate.Stopwatch, points: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns a world size's calibrations and points: stored ones in `folder`, or measured now."""
    paths = {name: folder / f"{world_size}-{name}.json" for name in ("before", "points", "after")}
    if not all(path.is_file() for path in paths.values()):
        write_models(folder)
        launch = environment.local_launch(world_size, environment.free_port())
        spawn(_measure, (world_size, launch, folder, timed, points), nprocs=world_size)
    return {name: json.loads(path.read_text()) for name, path in paths.items()}  # points: a list


@click.command()
@click.argument(
    "folder", type=click.Path(file_okay=False, path_type=Path), default="runs/simulator"
)
@click.option(
    "--clock", type=click.Choice(list(calibrate.CLOCKS)), default="wall", show_default=True
)
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--machines",
    type=click.Path(file_okay=False, path_type=Path),
    default="configs/machines",
    show_default=True,
)
@click.option(
    "--quick",
    is_flag=True,
    help="Two points of one rank, in FOLDER/quick; no machine file, nothing that documents are of.",
)
def main(folder: Path, clock: str, repeats: int, machines: Path, quick: bool) -> None:
    """Measure in FOLDER, predict, and store results/simulator.json and the rows.

    Results of an interrupted call are reused.
    """
    timed = calibrate.Stopwatch(clock, repeats)
    folder = folder / "quick" if quick else folder
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"clock": clock, "points": []}
    for world_size in (1,) if quick else STAGES:
        found = measured(world_size, folder, timed, grid(world_size)[: 2 if quick else None])
        machine = calibrate.machine_of(both(found["before"], found["after"]), world_size, clock)
        if not quick:
            calibrate.write(
                machine, machines / f"cpu-{world_size}-rank{'s' if world_size > 1 else ''}.yaml"
            )
        result["points"] += [predicted(point, machine, world_size) for point in found["points"]]
        result[f"calibrations of {world_size}"] = [found["before"], found["after"]]
    result["plain"] = summary([row["error"] for row in result["points"]])
    result["fitted"] = fitted(result["points"])
    click.echo("\n".join(table(result["points"])))
    click.echo(f"plain {result['plain']}, fitted {result['fitted']}")
    if not quick:
        click.echo(store_inputs("simulator", result))
    click.echo(rows_of(Sheet("simulator", quick), result).store())


if __name__ == "__main__":
    main()
