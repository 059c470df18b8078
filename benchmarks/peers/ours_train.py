"""Our side: ift_scale's training ranks on the workload, complete or without one optimization.

    python -m benchmarks.peers.ours_train runs/peers/train runs/peers/ours.json
        [--without last-layer-pruning] [options]

Input: the workload (train_set.py). Output: loss and seconds of each optimizer step, in the peers'
format, from the ranks' metrics. An optimization is disabled by its setting, or by
`ablated_ranks.py` if it has none.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.peers import ablated_ranks
from benchmarks.suite.registry import CHECKOUT
from ift_scale.config import TrainConfig
from ift_scale.io.files import read_json
from ift_scale.io.machine import package_versions
from ift_scale.records import Arm
from ift_scale.train import job
from ift_scale.train.launch import launcher

# The setting that disables it; None if `ablated_ranks.py` does.
MEASURES: dict[str, dict[str, Any]] = {
    "padding-removal": {},
    "balance": {},
    "supervised-rows": {},
    "last-layer-pruning": {"prune_last_layer": False},
    "prefix-sharing": {"share_prefix": False},
}


def train_config(batch: int, without: str | None, settings: dict[str, Any]) -> TrainConfig:
    return TrainConfig(
        num_ranks=settings["ranks"],
        launcher="direct",
        precision=settings["dtype"],
        zero_stage=2,
        offload="none",
        activation_checkpointing="none",
        epochs=1,
        global_batch_size=batch,
        tokens_per_micro_batch=settings["tokens_per_micro_batch"],
        learning_rate=settings["learning_rate"],
        log_every=1,
        **MEASURES.get(without or "", {}),
    )


def run(
    workload: Path, folder: Path, config: TrainConfig, without: str | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns (rows of metrics.jsonl, the arm's counts) of one training run; empties `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arm = job.ArmJob(
        arm=Arm(domain="engineering", setting="harmonious", seed=0),
        source=str(workload / "set.jsonl"),
        tokens=str(workload / "tokens"),
        folder=str(folder / "arm"),
        key="benchmark",
        inputs={},
    )
    model = workload / "model"
    work = job.Job(
        model_path=str(model),
        hidden_size=read_json(model / "config.json")["hidden_size"],
        template="vicuna",
        logs=str(folder),
        train=config,
        arms=[arm],
    )
    job.write(work, folder / "job.json")
    if without and not MEASURES[without]:
        launcher.RANK_MODULE = ablated_ranks.__name__
        os.environ[ablated_ranks.VARIABLE] = without
        path = [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
    group = launcher.RankProcesses(
        config, folder / "job.json", folder / "events.jsonl", folder / "ranks.log"
    )
    try:
        for _ in launcher.follow(group, folder / "events.jsonl"):
            pass
    finally:
        group.end()
    rows = [
        json.loads(line)
        for line in (folder / "arm" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return rows, read_json(folder / "arm" / "manifest.json")["counts"]


@click.command()
@click.argument("workload", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--without", type=click.Choice(list(MEASURES)), help="The measure that is taken away."
)
@click.option("--ranks", default=2, show_default=True)
@click.option("--tokens-per-micro-batch", default=8192, show_default=True)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
)
@click.option("--learning-rate", default=5e-4, show_default=True)
def main(workload: Path, output: Path, without: str | None, **settings: Any) -> None:
    """Train on WORKLOAD; write losses and seconds to OUTPUT."""
    started = time.perf_counter()
    about = read_json(workload / "workload.json")
    config = train_config(about["batch"], without, settings)
    rows, counts = run(workload, output.with_suffix(""), config, without)
    steps = [
        {
            "examples": about["batch"],
            "tokens": row["tokens"],
            "supervised": row["supervised_tokens"],
            "loss": row["loss"],
            "gradient_norm": row["grad_norm"],
            "seconds": row["seconds"],
        }
        for row in rows
    ]
    result = {
        "peer": "ours" + (f" without {without}" if without else ""),
        "settings": settings | {"without": without, "mean_imbalance": counts["mean_imbalance"]},
        "steps": steps,
        "losses": [step["loss"] for step in steps],
        "total_seconds": time.perf_counter() - started,
        "versions": package_versions(),
    }
    output.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
