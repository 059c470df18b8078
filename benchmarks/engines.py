"""vLLM against transformers on the world's pool: speed as a ratio, and the largest difference of their answers.

    python benchmarks/engines.py [--repeats 5]

Both engines are started once and then asked in turn, A B A B, each time with empty caches. No speed is stored unless they agree.
"""

import sys
import time
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from rows import quantiles, store

from ift_scale.config import ProbeConfig
from ift_scale.inference.engine import EngineSpec, ScoreRequest
from ift_scale.inference.model_folder import resolve
from ift_scale.inference.process import EngineProcess
from ift_scale.inference.prompts import Demonstrations
from ift_scale.inference.scoring import few_shot_renderer
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.questions import world

TOLERANCE_NATS = 0.01
ENGINES = ("vllm", "transformers")


def requests() -> list[ScoreRequest]:
    questions = world.load()
    render = few_shot_renderer(PromptTokenizer(resolve("world")), Demonstrations(questions, 5, 42))
    asked = [q for q in questions if q.kind == "choice" and q.split != "dev"]
    return render(sorted(asked, key=lambda q: q.topic))


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option("--logs", default=Path("runs/benchmark-logs"), type=click.Path(path_type=Path))
def main(repeats: int, logs: Path) -> None:
    """Measure both engines and store benchmarks/results/engines.json."""
    asked = requests()
    spec = {name: EngineSpec(str(resolve("world")), "float32", ProbeConfig(engine=name)) for name in ENGINES}
    engines = {name: EngineProcess(spec[name], logs / f"{name}.log") for name in ENGINES}
    seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
    answers: dict[str, np.ndarray] = {}
    try:
        for repeat in range(repeats + 1):  # the first round warms up
            for name, engine in engines.items():
                engine.reset_cache()
                started = time.perf_counter()
                answers[name] = np.array(engine.score(asked))
                if repeat:
                    seconds[name].append(time.perf_counter() - started)
    finally:
        for engine in engines.values():
            engine.close()
    difference = float(np.abs(answers["vllm"] - answers["transformers"]).max())
    agreement = float((answers["vllm"].argmax(1) == answers["transformers"].argmax(1)).mean())
    if difference > TOLERANCE_NATS:
        raise SystemExit(f"the engines differ by {difference:.4f} nats, over {TOLERANCE_NATS}: no speed is stored")
    ratios = [t / v for v, t in zip(seconds["vllm"], seconds["transformers"], strict=True)]
    path = store(
        "engines",
        {
            "questions": len(asked),
            "mean_prompt_tokens": float(np.mean([len(r.prompt) for r in asked])),
            "largest_difference_nats": difference,
            "agreement_of_predictions": agreement,
            "questions_per_second": {name: quantiles([len(asked) / s for s in seconds[name]]) for name in ENGINES},
            "seconds_to_start": {name: engine.seconds_to_start for name, engine in engines.items()},
            "speed_vllm_over_transformers": quantiles(ratios),
        },
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
