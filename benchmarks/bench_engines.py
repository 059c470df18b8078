"""vLLM and transformers on the world's pool and on real MMLU: speed ratio and largest difference.

    python -m benchmarks.bench_engines [--repeats 5]

Both engines are started once per model and called in turn (A B A B) with empty caches. No speed is
stored unless their answers agree.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from benchmarks.peers import model as peers_model
from benchmarks.peers import prompts as peers_prompts
from benchmarks.suite.rows import Gate, Sheet, ratios
from ift_scale.config import ProbeConfig
from ift_scale.config.engines import EngineName
from ift_scale.engines.model_folder import resolve
from ift_scale.engines.process import EngineProcess
from ift_scale.engines.protocol import EngineSpec, ScoreRequest
from ift_scale.io.progress import say
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.questions import world
from ift_scale.scoring.letters import FewShot, LetterAsker
from ift_scale.scoring.options import WHOLE_PROMPTS, LetterTokens, OptionRequest

TOLERANCE_NATS = 0.01
ENGINES: tuple[EngineName, ...] = ("vllm", "transformers")


def world_requests() -> list[ScoreRequest]:
    questions = world.load()
    asker = LetterAsker(
        FewShot(PromptTokenizer(resolve("world")), Demonstrations(questions, 5, 42)), plain
    )
    asked = [q for q in questions if q.kind == "choice" and q.split != "dev"]
    return _single(asker.write(sorted(asked, key=lambda q: q.topic)).requests)


def mmlu_requests(work: Path, count: int) -> list[ScoreRequest]:
    """Returns prompts of three MMLU subjects for a random Llama, creating both if missing."""
    model, prompts = work / "model", work / "prompts.jsonl"
    peers_model.create(model)
    if not prompts.exists():
        peers_prompts.create(prompts, model)
    tokenizer = PromptTokenizer(model)
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    rows = rows[:: max(1, len(rows) // count)][:count]
    return _single(
        LetterTokens(tokenizer, WHOLE_PROMPTS).after(
            [row["prompt"] for row in rows], [4] * len(rows)
        )
    )


def _single(requests: Sequence[OptionRequest]) -> list[ScoreRequest]:
    """Returns the requests; with these tokenizers every option is one token."""
    assert all(isinstance(request, ScoreRequest) for request in requests)
    return [request for request in requests if isinstance(request, ScoreRequest)]


def compare(
    sheet: Sheet, case: str, model: Path, asked: list[ScoreRequest], repeats: int, logs: Path
) -> None:
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
        raise SystemExit(
            f"the engines differ by {difference:.4f} nats, more than {TOLERANCE_NATS}: nothing is "
            "stored"
        )
    gate = Gate(
        checked="log-probabilities of both engines, nats", gap=difference, tolerance=TOLERANCE_NATS
    )
    about = {
        "questions": len(asked),
        "mean_prompt_tokens": float(np.mean([len(r.prompt) for r in asked])),
        "agreement_of_predictions": float(
            (answers["vllm"].argmax(1) == answers["transformers"].argmax(1)).mean()
        ),
    }
    rates = {name: [len(asked) / s for s in seconds[name]] for name in ENGINES}
    for name, values in rates.items():
        others = {} if name == "transformers" else {"transformers": rates["transformers"]}
        against = ratios(values, others, "higher")
        sheet.add(
            case,
            "questions per second",
            "1/s",
            values,
            gate,
            name,
            "higher",
            ratios=against,
            about=about,
        )
        sheet.add(case, "seconds to start", "s", [engines[name].seconds_to_start], gate, name)


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option("--mmlu", "count", default=196, show_default=True, help="Real MMLU prompts.")
@click.option("--work", default=Path("runs/peers"), type=click.Path(path_type=Path))
@click.option("--logs", default=Path("runs/benchmark-logs"), type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="64 questions of the world alone.")
def main(repeats: int, count: int, work: Path, logs: Path, quick: bool) -> None:
    """Measure both engines and store the rows of `engines`."""
    sheet = Sheet("engines", quick)
    asked = world_requests()
    compare(sheet, "world", resolve("world"), asked[:64] if quick else asked, repeats, logs)
    if not quick:
        compare(sheet, "MMLU", work / "model", mmlu_requests(work, count), repeats, logs)
    say(f"stored: {sheet.store()}")


if __name__ == "__main__":
    main()
