"""Seconds to `ift-scale --help`, to the first scored question and to the first optimizer step.

    python -m benchmarks.bench_start_up [--repeats 5]

Every repeat starts each program again, with files in the page cache as at a second start. First
question: from the start of a process to a real engine's answer to one question of the world. First
step: from the start of `ift-scale train` with one arm and two ranks to the end of its first
optimizer step, by the stage's own clocks.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import yaml

from benchmarks.suite.rows import Gate, Sheet
from ift_scale.config.engines import EngineName
from ift_scale.io.files import read_json
from ift_scale.io.manifests import read_manifest
from ift_scale.io.progress import say

ENGINES: tuple[EngineName, ...] = ("transformers", "vllm")
ANSWERED = Gate(checked="the question has an answer: log-probabilities that are numbers")
LEARNT = Gate(checked="the first step's loss is a number")


def first_question(engine: EngineName, log: Path) -> None:
    """Scores a question of the world with a new engine; prints the seconds of its parts."""
    started = time.perf_counter()
    import numpy as np

    from ift_scale.config import ProbeConfig
    from ift_scale.engines.model_folder import resolve
    from ift_scale.engines.process import EngineProcess
    from ift_scale.engines.protocol import EngineSpec, ScoreRequest
    from ift_scale.prompts.templates import Demonstrations
    from ift_scale.prompts.tokenizer import PromptTokenizer
    from ift_scale.prompts.views import plain
    from ift_scale.questions import world
    from ift_scale.scoring.letters import FewShot, LetterAsker

    imported = time.perf_counter()
    path = resolve("world")
    config = ProbeConfig(engine=engine)
    running = EngineProcess(EngineSpec(str(path), "float32", config), log)
    questions = world.load()
    asker = LetterAsker(FewShot(PromptTokenizer(path), Demonstrations(questions, 5, 42)), plain)
    written = asker.write([next(q for q in questions if q.kind == "choice" and q.split != "dev")])
    requests = [r for r in written.requests if isinstance(r, ScoreRequest)]
    assert len(requests) == 1
    running.ready()
    ready = time.perf_counter()
    found = running.score(requests)
    scored = time.perf_counter()
    running.close()
    assert np.isfinite(found).all()
    parts = {
        "imports": imported - started,
        "engine start, question written meanwhile": ready - imported,
        "answer": scored - ready,
    }
    print(json.dumps(parts))


def to_first_question(engine: EngineName, folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_start_up",
        "--question",
        engine,
        str(folder / f"{engine}.log"),
    ]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    parts: dict[str, float] = json.loads(output.splitlines()[-1])
    return {"all, with the process' end": time.perf_counter() - started, **parts}


def config(folder: Path) -> dict[str, Any]:
    engine = {"engine": "transformers", "chunk_size": 256}
    return {
        "output_dir": str(folder / "run"),
        "model": {"path": "world"},
        "questions": {"sources": [{"kind": "world"}]},
        "probe": engine,
        "construct": {"domains": ["medicine"], "settings": ["harmonious"], "size": 16},
        "train": {
            "num_ranks": 2,
            "epochs": 1,
            "global_batch_size": 16,
            "learning_rate": 1e-3,
            "max_length": 512,
            "tokens_per_micro_batch": 2048,
            "live": {"every": 0},
        },
        "evaluate": engine,
    }


def run_stage(path: Path, stage: str, *more: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "ift_scale.cli", stage, str(path), *more],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def to_first_step(path: Path, folder: Path, launcher: str) -> dict[str, float]:
    """Times a train stage without results; the stages before it are complete."""
    shutil.rmtree(folder / "train", ignore_errors=True)
    run_stage(path, "train", "--set", f"train.launcher={launcher}")
    launch = read_json(folder / "logs" / "train-seconds.json")
    arm = folder / "train" / "medicine-harmonious-seed0"
    manifest = read_manifest(arm)
    losses = [json.loads(line)["loss"] for line in (arm / "metrics.jsonl").read_text().splitlines()]
    if manifest is None or losses[0] is None:
        raise SystemExit("the first step's loss is no number: nothing is stored")
    parts = {
        "tokenising": launch["tokenise"],
        "launcher": launch["launch_and_imports"] - launch["imports"] - launch["join"],
        "imports": launch["imports"],
        "joining the group": launch["join"],
        "model and engine": manifest.seconds["build"],
        "the step": manifest.seconds["first_step"],
    }
    return {"all": sum(parts.values()), **parts}


def to_help() -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ift_scale.cli", "--help"], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - started


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--quick",
    is_flag=True,
    help="The command line and the first question of the transformers engine alone.",
)
@click.option(
    "--question",
    nargs=2,
    help="Ask one question of this engine, with this log; how the driver calls itself.",
)
def main(repeats: int, quick: bool, question: tuple[EngineName, str] | None) -> None:
    """Measure and store the rows of `start-up`."""
    if question:
        first_question(question[0], Path(question[1]))
        return
    sheet = Sheet("start-up", quick)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config(folder)))
        to_help()
        sheet.add(
            "ift-scale --help",
            "seconds",
            "s",
            [to_help() for _ in range(repeats)],
            Gate(checked="exit code", gap=0),
        )
        for engine in ENGINES[: 1 if quick else None]:
            runs = [to_first_question(engine, folder) for _ in range(repeats)]
            add(sheet, f"first question, {engine}", runs, ANSWERED)
        if not quick:
            for stage in ("questions", "probe", "write", "construct"):
                run_stage(path, stage)
            for launcher in ("deepspeed", "direct"):
                runs = [to_first_step(path, folder / "run", launcher) for _ in range(repeats)]
                add(sheet, f"first step, launcher {launcher}", runs, LEARNT)
    say(f"stored: {sheet.store()}")


def add(sheet: Sheet, case: str, runs: list[dict[str, float]], gate: Gate) -> None:
    say(f"{case}: {runs[-1]}")
    for part in runs[0]:
        sheet.add(f"{case}: {part}", "seconds", "s", [run[part] for run in runs], gate)


if __name__ == "__main__":
    main()
