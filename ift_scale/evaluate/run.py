"""The evaluate stage: what each fine-tuned arm answers, 0-shot in the training template. Out: ARM/scores.parquet.

One engine serves all arms: it is started with the first and takes the weights of the others in place.
"""

import time
from functools import partial
from pathlib import Path

from ift_scale import artifacts
from ift_scale.config import Config
from ift_scale.errors import EnvironmentProblem
from ift_scale.inference.engine import EngineSpec
from ift_scale.inference.process import EngineProcess
from ift_scale.inference.scoring import chat_renderer, drop_shards, score_questions
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.progress import Bar, say
from ift_scale.records import Arm, Group, Question

VERSION = 1
FILE = "scores.parquet"


def group_of(question_domain: str, collection: str, arm_domain: str) -> Group | None:
    """HOMO: the held-out test of the arm's own pool; ID: the benchmark's part of its domain; OOD: the benchmark's rest."""
    if collection == "pool":
        return "HOMO" if question_domain == arm_domain else None
    return "ID" if question_domain == arm_domain else "OOD"


def asked_of(arm: Arm, questions: list[Question]) -> list[Question]:
    """The test questions that belong to one of the arm's groups."""
    tests = (q for q in questions if q.kind == "choice" and q.split == "test")
    return [q for q in tests if group_of(q.domain, q.collection, arm.domain) is not None]


class WarmEngine:
    """One engine process that serves several checkpoints of one architecture, one after the other."""

    def __init__(self, config: Config, log: Path, bar: Bar):
        self._config, self._log, self._bar = config, log, bar
        self._engine: EngineProcess | None = None
        self._loaded: Path | None = None
        self.seconds_to_start = 0.0
        self.seconds_to_load = 0.0

    def serve(self, model_path: Path) -> EngineProcess:
        """The engine with the weights of `model_path`."""
        started = time.monotonic()
        if self._engine is not None and self._loaded != model_path:
            try:
                self._engine.load_weights(model_path)
                self.seconds_to_load += time.monotonic() - started
            except EnvironmentProblem as error:
                say(f"evaluate: the engine could not take new weights, so a new one is started: {str(error).splitlines()[0]}")
                self.close()
        if self._engine is None:
            self._bar.note(f"starting the {self._config.evaluate.engine} engine")
            spec = EngineSpec(str(model_path), self._config.model.dtype, self._config.evaluate)
            self._engine = EngineProcess(spec, self._log)
            self.seconds_to_start += self._engine.seconds_to_start
        self._loaded = model_path
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def run(
    config: Config,
    folder: Path,
    pending: list[tuple[Arm, Path, str, dict[str, str]]],
    questions: list[Question],
    logs: Path,
    bar: Bar,
) -> None:
    """Evaluate the pending arms (arm, model folder, key, inputs) into FOLDER/ARM."""
    engine = WarmEngine(config, logs / "evaluate.log", bar)
    tokenizer = PromptTokenizer(pending[0][1])
    render = chat_renderer(tokenizer, config.evaluate.template)
    try:
        for arm, model_path, key, inputs in pending:
            started = time.monotonic()
            target = folder / arm.name
            bar.note(arm.name)
            before = engine.seconds_to_start, engine.seconds_to_load
            scores, work = score_questions(
                asked_of(arm, questions),
                render,
                partial(engine.serve, model_path),
                target,
                key,
                config.evaluate.chunk_size,
                bar,
            )
            artifacts.write_parquet(target / FILE, scores)
            start, load = engine.seconds_to_start - before[0], engine.seconds_to_load - before[1]
            total = time.monotonic() - started
            seconds = {"total": total, "engine_start": start, "load_weights": load, "scoring": total - start - load}
            counts = {
                "questions": len(scores),
                "computed_questions": work.questions,
                "prompt_tokens": work.tokens,
                "mean_letter_mass": sum(s.letter_mass for s in scores) / len(scores),
            }
            artifacts.write_manifest(target, "evaluate", key, config.evaluate.model_dump(), inputs, counts, seconds)
            drop_shards(target)
    finally:
        engine.close()
