"""Throughput against accuracy: the same arms trained by ours and by TRL's SFTTrainer, both evaluated by our evaluator.

    benchmarks/peers/install_trl.sh
    python -m benchmarks.bench_end_to_end [--repeats 3]

The world's medicine pool is probed and H, I and S are built from it once, a seed a repeat. Ours trains all arms as the pipeline
does; TRL gets the same token ids in the same optimizer steps with the same hyperparameters, in its own environment, two ranks,
ZeRO-2, a start an arm, as a person would start it. Its weights take the place of ours in a second run, which evaluates and
analyses them. Nothing is stored unless every step's loss and nearly every prediction of the trained models agree: then what is
learnt is the same, and the rest is speed.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from benchmarks.peers.train_set import peer_rows
from benchmarks.suite.registry import environment
from benchmarks.suite.rows import OURS, Gate, Sheet, ratios
from ift_scale.config.file import from_dict
from ift_scale.io.files import atomic_folder, log_tail, write_text
from ift_scale.io.manifests import write_manifest
from ift_scale.io.progress import say
from ift_scale.pipeline import Pipeline
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.stage import Task
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.cache import tokenized

PEERS = Path(__file__).parent / "peers"
TRL = "TRL"
DOMAIN, BATCH = "medicine", 16
LOSS_TOLERANCE, LEAST_AGREEMENT = 1e-3, 0.97
Steps = list[dict[str, Any]]


def config_of(folder: Path, seeds: int, quick: bool) -> Any:
    engine = {"engine": "transformers", "chunk_size": 256}
    settings = ["harmonious"] if quick else ["harmonious", "incompatible", "self_aligning"]
    return from_dict(
        {
            "output_dir": str(folder),
            "model": {"path": "world"},
            "questions": {"sources": [{"kind": "world"}]},
            "probe": engine,
            # As many questions as general instructions: whole steps of 16, which every trainer takes alike.
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


def ours(config: Any) -> tuple[Pipeline, dict[str, Steps], float]:
    """(the run, each arm's steps, seconds of the train stage)."""
    pipeline = Pipeline(config)
    for stage in ("questions", "probe", "write", "construct"):
        getattr(pipeline, stage)()
    started = time.perf_counter()
    pipeline.make("train")
    seconds = time.perf_counter() - started
    pipeline.make("evaluate")
    pipeline.make("analyse")
    files = {
        task.arm.name: task.folder / "metrics.jsonl" for task in pipeline.context.tasks("train")
    }
    steps = {
        name: [json.loads(line) for line in file.read_text().splitlines()]
        for name, file in files.items()
    }
    return pipeline, steps, seconds


def trl(config: Any, first: Pipeline, work: Path) -> tuple[Pipeline, dict[str, Steps], float]:
    """The same of TRL; seconds of all its processes from start to end."""
    pipeline = Pipeline(config, siblings=[first.context.root])
    for stage in ("questions", "probe", "write", "construct"):
        getattr(pipeline, stage)()
    steps, seconds = {}, 0.0
    for task in pipeline.context.tasks("train"):
        steps[task.arm.name], spent = train_by_trl(pipeline, task, first, work / task.arm.name)
        seconds += spent
    pipeline.make("evaluate")
    pipeline.make("analyse")
    return pipeline, steps, seconds


def train_by_trl(
    pipeline: Pipeline, task: Task, first: Pipeline, work: Path
) -> tuple[Steps, float]:
    """Train an arm by TRL and put its weights where the pipeline has its own: with the tokenizer and template of ours."""
    config = pipeline.context.config
    tokens = dataset.load(
        tokenized(
            pipeline.context.folder("construct") / f"{task.folder.name}.jsonl",
            first.folder("train") / ".tokens",
            PromptTokenizer(pipeline.context.model_path),
            config,
        )
    )
    order = list(
        packing.step_examples(len(tokens.lengths), BATCH, config.train.epochs, task.arm.seed)
    )
    if any(len(step) != BATCH for step in order):
        raise SystemExit(
            f"{task.arm.name} does not fill its last step: the trainers would differ in it"
        )
    work.mkdir(parents=True)
    write_text(
        work / "steps.jsonl", "".join(json.dumps(row) + "\n" for row in peer_rows(tokens, order))
    )
    (work / "model").symlink_to(pipeline.context.model_path.resolve())
    command = [
        str(environment("trl")),
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    command += [
        str(PEERS / "trl_sft.py"),
        str(work),
        str(work / "result.json"),
        "--steps",
        str(len(order)),
        "--batch",
        str(BATCH),
    ]
    command += [
        "--micro-batch",
        "8",
        "--learning-rate",
        str(config.train.learning_rate),
        "--save",
        str(work / "weights"),
    ]
    told = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    started = time.perf_counter()
    with (work / "log").open("w") as log:
        ended = subprocess.run(command, stdout=log, stderr=log, env=told)
    seconds = time.perf_counter() - started
    if ended.returncode:
        raise SystemExit(f"TRL failed on {task.arm.name}\n{log_tail(work / 'log')}")
    with atomic_folder(task.folder) as folder:
        shutil.copytree(first.folder("train") / task.arm.name / "model", folder / "model")
        shutil.copyfile(
            work / "weights" / "model.safetensors", folder / "model" / "model.safetensors"
        )
        write_manifest(folder, "train", task.key, {}, task.inputs, {}, {"total": seconds})
    found: Steps = json.loads((work / "result.json").read_text())["steps"]
    say(f"TRL: {task.arm.name}: {len(found)} steps, {seconds:.0f} s with its start")
    return found, seconds


def loss_gap(mine: Steps, theirs: Steps) -> float:
    """Largest relative difference of a step's loss; ends where the steps were of other tokens."""
    if [step["tokens"] for step in mine] != [step["tokens"] for step in theirs]:
        raise SystemExit("TRL took steps of other tokens than ours")
    return max(abs(b["loss"] / a["loss"] - 1) for a, b in zip(mine, theirs, strict=True))


def disagreement(first: Pipeline, second: Pipeline) -> float:
    """Share of all arms' questions on which the two trained models predict another option."""
    shares = []
    for arm in first.arms():
        tables = [
            pq.read_table(p.folder("evaluate") / arm.name / "scores.parquet").to_pandas()
            for p in (first, second)
        ]
        a, b = (table.set_index("question_id").prediction.sort_index() for table in tables)
        shares.append(float((a != b).mean()))
    return float(np.mean(shares))


def speed(steps: Steps) -> float:
    """Tokens a second of an arm, without its first step, padding not counted."""
    return sum(step["tokens"] for step in steps[1:]) / sum(step["seconds"] for step in steps[1:])


def rows_of(sheet: Sheet, runs: dict[str, tuple[Pipeline, dict[str, Steps], float]]) -> Sheet:
    (first, mine, _), (second, theirs, _) = runs[OURS], runs[TRL]
    loss, predictions = (
        max(loss_gap(mine[name], theirs[name]) for name in mine),
        disagreement(first, second),
    )
    if loss > LOSS_TOLERANCE or predictions > 1 - LEAST_AGREEMENT:
        raise SystemExit(
            f"losses differ by {loss:.1e}, predictions on {predictions:.1%} of the questions: nothing is stored"
        )
    of_losses = Gate(
        checked="relative difference of a step's loss from ours", gap=loss, tolerance=LOSS_TOLERANCE
    )
    of_answers = Gate(
        checked="share of the trained models' answers that differ",
        gap=predictions,
        tolerance=1 - LEAST_AGREEMENT,
    )
    cases = list(dict.fromkeys(arm.setting for arm in first.arms()))
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
