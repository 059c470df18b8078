"""The probe stage: what the base model answers, few-shot, to every choice question. Out: probe.parquet."""

import time
from pathlib import Path

from ift_scale import artifacts
from ift_scale.config import Config
from ift_scale.inference.engine import EngineSpec
from ift_scale.inference.process import EngineProcess
from ift_scale.inference.prompts import Demonstrations
from ift_scale.inference.scoring import drop_shards, few_shot_renderer, score_questions
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.progress import Bar
from ift_scale.records import Question

VERSION = 1
FILE = "probe.parquet"


def probed(questions: list[Question]) -> list[Question]:
    """The questions that are asked: choice questions, demonstrations aside."""
    return [q for q in questions if q.kind == "choice" and q.split != "dev"]


def run(
    config: Config,
    folder: Path,
    key: str,
    inputs: dict[str, str],
    model_path: Path,
    questions: list[Question],
    logs: Path,
    bar: Bar,
) -> None:
    started = time.monotonic()
    tokenizer = PromptTokenizer(model_path)
    demonstrations = Demonstrations(questions, config.probe.num_shots, config.probe.demonstration_seed)
    asked = probed(questions)
    for question in asked:
        demonstrations.of(question)  # every topic's, before anything starts
    engines: list[EngineProcess] = []

    def start() -> EngineProcess:
        if not engines:
            bar.note(f"starting the {config.probe.engine} engine")
            spec = EngineSpec(str(model_path), config.model.dtype, config.probe)
            engines.append(EngineProcess(spec, logs / "probe.log"))
            bar.note("scoring")
        return engines[0]

    render = few_shot_renderer(tokenizer, demonstrations)
    try:
        scores, work = score_questions(asked, render, start, folder, key, config.probe.chunk_size, bar)
    finally:
        for engine in engines:
            engine.close()
    artifacts.write_parquet(folder / FILE, scores)
    total = time.monotonic() - started
    start_seconds = engines[0].seconds_to_start if engines else 0.0
    counts = {
        "questions": len(scores),
        "computed_questions": work.questions,
        "prompt_tokens": work.tokens,
        "mean_letter_mass": sum(s.letter_mass for s in scores) / len(scores),
        "accuracy": sum(s.correct for s in scores) / len(scores),
    }
    seconds = {"total": total, "engine_start": start_seconds, "scoring": total - start_seconds}
    artifacts.write_manifest(folder, "probe", key, config.probe.model_dump(), inputs, counts, seconds)
    drop_shards(folder)
