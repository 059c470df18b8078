"""vLLM against transformers, on the world's pool and on real MMLU: speed as a ratio, and the largest difference of their answers.

    python benchmarks/engines.py [--repeats 5]

Both engines are started once a model and then asked in turn, A B A B, each time with empty caches. No speed is stored unless they
agree.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from rows import quantiles, store

from ift_scale.config import ProbeConfig
from ift_scale.inference.engine import EngineSpec, ScoreRequest
from ift_scale.inference.letters import FewShot, LetterAsker
from ift_scale.inference.model_folder import resolve
from ift_scale.inference.process import EngineProcess
from ift_scale.inference.prompts import Demonstrations
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.inference.views import plain
from ift_scale.questions import world

TOLERANCE_NATS = 0.01
ENGINES = ("vllm", "transformers")
PEERS = Path(__file__).parent / "peers"


def world_requests() -> list[ScoreRequest]:
    questions = world.load()
    asker = LetterAsker(FewShot(PromptTokenizer(resolve("world")), Demonstrations(questions, 5, 42)), plain)
    asked = [q for q in questions if q.kind == "choice" and q.split != "dev"]
    return asker.write(sorted(asked, key=lambda q: q.topic)).requests


def mmlu_requests(work: Path, count: int) -> list[ScoreRequest]:
    """Prompts of three MMLU subjects for a randomly initialised Llama (peers/README.md), both made where they are not there."""
    model, prompts = work / "model", work / "prompts.jsonl"
    if not model.exists():
        subprocess.run([sys.executable, str(PEERS / "model.py"), str(model)], check=True)
    if not prompts.exists():
        subprocess.run([sys.executable, str(PEERS / "prompts.py"), str(prompts), "--model", str(model)], check=True)
    tokenizer = PromptTokenizer(model)
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    rows = rows[:: max(1, len(rows) // count)][:count]
    ids = tokenizer.encode([row["prompt"] for row in rows])
    return [ScoreRequest([], i, tokenizer.letters(row["prompt"], 4, "")) for i, row in zip(ids, rows, strict=True)]


def compare(model: Path, asked: list[ScoreRequest], repeats: int, logs: Path) -> dict[str, Any]:
    spec = {name: EngineSpec(str(model), "float32", ProbeConfig(engine=name)) for name in ENGINES}
    engines = {name: EngineProcess(spec[name], logs / f"{name}.log").ready() for name in ENGINES}
    seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
    answers: dict[str, np.ndarray] = {}
    try:
        for repeat in range(repeats + 1):  # the first round warms up
            for name, engine in engines.items():
                engine.reset_cache()
                started = time.perf_counter()
                answers[name] = engine.score(asked).reshape(len(asked), -1)
                if repeat:
                    seconds[name].append(time.perf_counter() - started)
    finally:
        for engine in engines.values():
            engine.close()
    difference = float(np.abs(answers["vllm"] - answers["transformers"]).max())
    if difference > TOLERANCE_NATS:
        raise SystemExit(f"the engines differ by {difference:.4f} nats, over {TOLERANCE_NATS}: no speed is stored")
    return {
        "questions": len(asked),
        "mean_prompt_tokens": float(np.mean([len(r.prompt) for r in asked])),
        "largest_difference_nats": difference,
        "agreement_of_predictions": float((answers["vllm"].argmax(1) == answers["transformers"].argmax(1)).mean()),
        "questions_per_second": {name: quantiles([len(asked) / s for s in seconds[name]]) for name in ENGINES},
        "seconds_to_start": {name: engine.seconds_to_start for name, engine in engines.items()},
        "speed_vllm_over_transformers": quantiles([t / v for v, t in zip(seconds["vllm"], seconds["transformers"], strict=True)]),
    }


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option("--mmlu", "count", default=196, show_default=True, help="Real MMLU prompts.")
@click.option("--work", default=Path("runs/peers"), type=click.Path(path_type=Path))
@click.option("--logs", default=Path("runs/benchmark-logs"), type=click.Path(path_type=Path))
def main(repeats: int, count: int, work: Path, logs: Path) -> None:
    """Measure both engines and store benchmarks/results/engines.json."""
    found = {
        "world": compare(resolve("world"), world_requests(), repeats, logs),
        "mmlu": compare(work / "model", mmlu_requests(work, count), repeats, logs),
    }
    print(store("engines", found).read_text())


if __name__ == "__main__":
    main()
