"""Predicted scaling of 7B to 70B over 8 to 1,024 GPUs; nothing is measured.

    python -m benchmarks.predict_scaling

Each row is one model, machine and size under two loads: a full micro-batch per GPU, and a step of
the default global batch. Stage 2 is predicted twice, with slices reduced to their owners and with
whole buckets all-reduced; the trainer uses the former up to `memory.SLICED_UP_TO` GPUs and the
latter beyond. In addition: ZeRO-3 with and without weights stored once per node (`train.hpz`).
Attention is flash-attn's, which repeats no keys: with `auto` the memory would depend on the
installed torch.
"""

import itertools
from dataclasses import replace
from typing import Any

import click

from benchmarks.suite.rows import store_inputs
from ift_scale.config import TrainConfig
from ift_scale.estimate import memory, scaling
from ift_scale.estimate.machine import read_machine
from ift_scale.estimate.scaling import Examples, ScalingRow
from ift_scale.plan.memory import read_shape

MODELS = ("llama-2-7b", "llama-2-13b", "llama-2-70b")
MACHINES = ("a100-80", "h100-sxm", "h200")
HPZ_MACHINES, HPZ_MODELS, HPZ_SIZES = (
    ("a100-80", "h100-sxm"),
    ("llama-2-13b", "llama-2-70b"),
    (64, 128, 256, 512),
)
LOADS = {"full micro-batch": scaling.full, "global batch": scaling.global_batch}


def as_json(row: ScalingRow) -> dict[str, Any]:
    found = row.prediction
    return {
        "gpus": row.devices,
        "idle": row.devices - row.busy,
        "zero_stage": row.setting.zero_stage,
        "hpz": row.setting.hpz,
        "checkpointing": row.setting.checkpointing,
        "offload": row.setting.offload,
        "memory_gib": _short(row.memory.total / 2**30),
        "fits": row.fits,
        "micro_batches": row.micro_batches,
        "seconds": _short(found.seconds),
        "tokens_per_second_per_gpu": _short(found.tokens_per_second_per_device),
        "mfu": _short(found.mfu),
        "parts": {name: _short(value) for name, value in found.parts.items() if value},
        "hidden": _short(found.hidden),
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def rows() -> list[dict[str, Any]]:
    train, examples = TrainConfig(attention="flash_attn"), Examples()
    found = []
    for model, name, (load, step_of) in itertools.product(MODELS, MACHINES, LOADS.items()):
        shape, machine = read_shape(model), read_machine(name)
        for size, whole in itertools.product(scaling.SIZES, (False, True)):
            row = scaling.row(
                shape, train, machine, step_of(examples, train, size), whole_buckets=whole
            )
            if row.setting.zero_stage == 2 or not whole:
                of_trainer = whole == (row.setting.zero_stage == 2 and memory.whole_buckets(size))
                what = {
                    "model": model,
                    "machine": name,
                    "load": load,
                    "whole_buckets": whole,
                    "as_trained": of_trainer,
                }
                found.append(what | as_json(row))
    return found


def hpz_rows() -> list[dict[str, Any]]:
    """Seconds per step and GiB per GPU of ZeRO-3, gathering among all GPUs or inside nodes."""
    train, examples = TrainConfig(attention="flash_attn", zero_stage=3), Examples()
    found = []
    for name, model, (load, step_of), size in itertools.product(
        HPZ_MACHINES, HPZ_MODELS, LOADS.items(), HPZ_SIZES
    ):
        shape, machine, step = read_shape(model), read_machine(name), step_of(examples, train, size)
        within = scaling.row(shape, train, machine, step)
        among_all = scaling.row(shape, train, machine, step, replace(within.setting, hpz=1))
        assert within.setting.hpz == machine.devices_per_node, "it does not fit: nothing to compare"
        entry = {
            "machine": name,
            "model": model,
            "load": load,
            "gpus": size,
            "checkpointing": within.setting.checkpointing,
        }
        for key, row in (("among_all", among_all), ("within_node", within)):
            sending = _short(row.prediction.parts["communication"])
            entry |= {f"seconds_{key}": _short(row.prediction.seconds), f"sending_{key}": sending}
            entry |= {f"memory_gib_{key}": _short(row.memory.total / 2**30)}
        found.append(entry)
    return found


def hpz_table(found: list[dict[str, Any]]) -> list[str]:
    """Returns rows of docs/simulator.md."""
    lines = []
    for row in found:
        before, after = row["seconds_among_all"], row["seconds_within_node"]
        seconds = f"{before:.3f} | {after:.3f} | {before / after - 1:+.0%}"
        gib = f"{row['memory_gib_among_all']:.0f} | {row['memory_gib_within_node']:.0f}"
        cells = row["machine"], row["model"], row["load"], row["gpus"], seconds, gib
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def table(found: list[dict[str, Any]]) -> list[str]:
    """Returns rows of docs/simulator.md: H100 nodes, full micro-batches, the trainer's buckets."""
    lines = []
    for model in MODELS:
        shown = (model, "h100-sxm", "full micro-batch")
        for row in (
            row
            for row in found
            if row["as_trained"] and (row["model"], row["machine"], row["load"]) == shown
        ):
            offload = "" if row["offload"] == "none" else f", offload {row['offload']}"
            copies = ", hpZ" if row["hpz"] > 1 else ""
            setting = f"ZeRO-{row['zero_stage']}{copies}, {row['checkpointing']}{offload}"
            sending = row["parts"]["communication"] / row["seconds"]
            figures = f"{row['memory_gib']:.0f} | {row['seconds']:.2f} | "
            figures += f"{row['tokens_per_second_per_gpu']:,.0f} | {row['mfu']:.0%}"
            lines.append(f"| {model} | {row['gpus']:,} | {setting} | {figures} | {sending:.0%} |")
    return lines


@click.command()
def main() -> None:
    """Store results/predicted_scaling.json and print the tables of the docs."""
    found, within = rows(), hpz_rows()
    click.echo("\n".join([*table(found), *hpz_table(within)]))
    click.echo(store_inputs("predicted_scaling", {"predicted": found, "hpz": within}))


if __name__ == "__main__":
    main()
