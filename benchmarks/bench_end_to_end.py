"""Throughput and accuracy: the same arms trained by ours and by TRL's SFTTrainer.

    benchmarks/peers/install_trl.sh
    python -m benchmarks.bench_end_to_end [--repeats 3]

The world's medicine pool is probed and H, I and S are built once, with one seed per repeat. Ours
trains all arms as the pipeline does. TRL gets the same token ids in the same optimizer steps with
the same hyperparameters, in its own environment: two ranks, ZeRO-2, one start per arm as a user
would do. Its weights replace ours in a second run, and our evaluator evaluates both. Nothing is
stored unless every step's loss and nearly all predictions of the trained models agree, so that only
speed differs.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from benchmarks.bench_train import peer_command, run_one
from benchmarks.peers.train_set import peer_rows
from benchmarks.suite.registry import environment
from benchmarks.suite.rows import OURS, Gate, Sheet, ratios
from ift_scale.config import Config
from ift_scale.config.file import from_dict
from ift_scale.io.files import atomic_folder, write_text
from ift_scale.io.progress import say
from ift_scale.pipeline import Pipeline
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Arm
from ift_scale.stage import Task
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.cache import TOKENS, tokenized

TRL = "TRL"
DOMAIN, BATCH = "medicine", 16
LOSS_TOLERANCE, LEAST_AGREEMENT = 1e-3, 0.97
Steps = list[dict[str, Any]]


def config_of(folder: Path, seeds: int, quick: bool) -> Config:
    engine = {"engine": "transformers", "chunk_size": 256}
    settings = ["harmonious"] if quick else ["harmonious", "incompatible", "self_aligning"]
    return from_dict(
        {
            "output_dir": str(folder),
            "model": {"path": "world"},
            "questions": {"sources": [{"kind": "world"}]},
            "probe": engine,
            # As many questions as general instructions: full steps of 16, alike in both trainers.
            "construct": {
                "domains": [DOMAIN],
                "settings": settings,
                "seeds": list(range(seeds)),
                "size": 16 if quick else 48,
            },
            "train": {
                "num_ranks": 2,
                "launcher": "direct",
                "zero_stage": 2,
                "offload": "none",
                "activation_checkpointing": "none",
                "epochs": 1 if quick else 3,
                "global_batch_size": BATCH,
                "learning_rate": 1e-3,
                "max_length": 512,
                "tokens_per_micro_batch": 2048,
                "log_every": 1,
                "live": {"every": 0},
            },
            "evaluate": engine,
        }
    )


def constructed(config: Config, siblings: Sequence[Path] = ()) -> Pipeline:
    """Returns a run whose sets are constructed."""
    pipeline = Pipeline(config, siblings=siblings)
    for stage in ("questions", "probe", "write", "construct"):
        pipeline.make(stage)
    return pipeline


def evaluated(pipeline: Pipeline) -> None:
    for stage in ("evaluate", "analyse"):
        pipeline.make(stage)


def ours(config: Config) -> tuple[Pipeline, dict[str, Steps], float]:
    """Returns (the run, each arm's steps, seconds of the train stage)."""
    pipeline = constructed(config)
    started = time.perf_counter()
    pipeline.make("train")
    seconds = time.perf_counter() - started
    evaluated(pipeline)
    steps = {}
    for arm in pipeline.context.arms():
        file = pipeline.context.folder("train", arm) / "metrics.jsonl"
        steps[arm.name] = [json.loads(line) for line in file.read_text().splitlines()]
    return pipeline, steps, seconds


def trl(config: Config, first: Pipeline, work: Path) -> tuple[Pipeline, dict[str, Steps], float]:
    """Returns the same for TRL; seconds are those of all its processes from start to end."""
    pipeline = constructed(config, [first.context.root])
    steps, total = {}, 0.0
    for task in pipeline.context.tasks("train"):
        assert task.arm is not None
        steps[task.arm.name], seconds = train_by_trl(pipeline, task, task.arm, first, work)
        total += seconds
    evaluated(pipeline)
    return pipeline, steps, total


def train_by_trl(
    pipeline: Pipeline, task: Task, arm: Arm, first: Pipeline, folder: Path
) -> tuple[Steps, float]:
    """Trains an arm by TRL and exports its weights with our tokenizer and template."""
    context, work, name = pipeline.context, folder / arm.name, arm.name
    config, cache = context.config, first.context.folder("train") / TOKENS
    tokenizer = PromptTokenizer(context.model_path)
    tokens = dataset.load(
        tokenized(context.folder("construct") / f"{name}.jsonl", cache, tokenizer, config)
    )
    order = list(packing.step_examples(len(tokens.lengths), BATCH, config.train.epochs, arm.seed))
    if any(len(step) != BATCH for step in order):
        raise SystemExit(f"{name} does not fill its last step: the trainers would differ in it")
    work.mkdir(parents=True)
    write_text(
        work / "steps.jsonl", "".join(json.dumps(row) + "\n" for row in peer_rows(tokens, order))
    )
    (work / "model").symlink_to(context.model_path.resolve())
    options = ["--steps", str(len(order)), "--batch", str(BATCH), "--micro-batch", "8"]
    options += ["--learning-rate", str(config.train.learning_rate), "--save", str(work / "weights")]
    command = peer_command("trl_sft.py", str(work), *options)
    started = time.perf_counter()
    found: Steps = run_one(TRL, command, work, work / "result.json", resume=False)["steps"]
    seconds = time.perf_counter() - started
    with atomic_folder(task.folder) as exported:
        shutil.copytree(first.context.folder("train", arm) / "model", exported / "model")
        shutil.copy(work / "weights" / "model.safetensors", exported / "model")
        task.close({}, {}, {"total": seconds}, exported)
    say(f"TRL: {name}: {len(found)} steps, {seconds:.0f} s including start-up")
    return found, seconds


def loss_gap(mine: Steps, theirs: Steps) -> float:
    """Returns the largest relative difference of a step's loss; exits if the tokens differ."""
    if [step["tokens"] for step in mine] != [step["tokens"] for step in theirs]:
        raise SystemExit("TRL took steps of other tokens than ours")
    return max(abs(b["loss"] / a["loss"] - 1) for a, b in zip(mine, theirs, strict=True))


def disagreement(first: Pipeline, second: Pipeline) -> float:
    """Returns the share of all arms' questions with different predictions."""
    shares = []
    for arm in first.context.arms():
        tables = [
            pq.read_table(p.context.folder("evaluate", arm) / "scores.parquet").to_pandas()
            for p in (first, second)
        ]
        a, b = (table.set_index("question_id").prediction.sort_index() for table in tables)
        shares.append(float((a != b).mean()))
    return float(np.mean(shares))


def speed(steps: Steps) -> float:
    """Returns tokens per second of an arm, without its first step and without padding."""
    return sum(step["tokens"] for step in steps[1:]) / sum(step["seconds"] for step in steps[1:])


def rows_of(sheet: Sheet, runs: dict[str, tuple[Pipeline, dict[str, Steps], float]]) -> Sheet:
    (first, mine, _), (second, theirs, _) = runs[OURS], runs[TRL]
    loss, predictions = (
        max(loss_gap(mine[name], theirs[name]) for name in mine),
        disagreement(first, second),
    )
    if loss > LOSS_TOLERANCE or predictions > 1 - LEAST_AGREEMENT:
        raise SystemExit(
            f"losses differ by {loss:.1e}, predictions on {predictions:.1%} of the questions: "
            "nothing is stored"
        )
    of_losses = Gate(
        checked="relative difference of a step's loss from ours", gap=loss, tolerance=LOSS_TOLERANCE
    )
    of_answers = Gate(
        checked="share of the trained models' answers that differ",
        gap=predictions,
        tolerance=1 - LEAST_AGREEMENT,
    )
    cases = list(dict.fromkeys(arm.setting for arm in first.context.arms()))
    for who, (pipeline, steps, seconds) in runs.items():
        arms = pipeline.context.arms()
        about = {
            "seeds": len({arm.seed for arm in arms}),
            "train": pipeline.context.config.train.model_dump(),
        }
        for case in cases:
            names = [arm.name for arm in arms if arm.setting == case]
            rates = [speed(steps[name]) for name in names]
            others = {TRL: [speed(theirs[name]) for name in names]} if who == OURS else {}
            against = ratios(rates, others, "higher")
            sheet.add(
                case,
                "tokens per second",
                "1/s",
                rates,
                of_losses,
                who,
                "higher",
                ratios=against,
                about=about,
            )
        sheet.add(
            "all arms",
            "wall seconds per arm, start included",
            "s",
            [seconds / len(arms)],
            of_losses,
            who,
            about=about,
        )
        found = pd.read_csv(pipeline.context.folder("analyse") / "settings.csv").query(
            f"domain == '{DOMAIN}' and group == 'HOMO'"
        )
        for row in found.to_dict("records"):
            for quantity, unit, factor in (
                ("accuracy", "%", 100),
                ("consistency", "rank correlation", 1),
            ):
                value, *ends = (
                    factor * row[name] for name in (quantity, f"{quantity}_low", f"{quantity}_high")
                )
                interval = None if any(np.isnan(ends)) else tuple(ends)
                sheet.add(
                    row["setting"],
                    quantity,
                    unit,
                    [value],
                    of_answers,
                    who,
                    "neither",
                    interval=interval,
                    about=about,
                )
    return sheet


@click.command()
@click.option(
    "--repeats", default=3, show_default=True, help="Seeds, an arm of each setting for each."
)
@click.option("--quick", is_flag=True, help="One setting, two steps.")
def main(repeats: int, quick: bool) -> None:
    """Train, evaluate, compare, and store the rows of `end-to-end`."""
    if not environment("trl").is_file():
        raise click.UsageError("TRL is not installed; run `python -m benchmarks peers install trl`")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mine = ours(config_of(folder / "ours", repeats, quick))
        theirs = trl(config_of(folder / "trl", repeats, quick), mine[0], folder / "work")
        say(f"stored: {rows_of(Sheet('end-to-end', quick), {OURS: mine, TRL: theirs}).store()}")


if __name__ == "__main__":
    main()
