"""The probe stage: the base model's few-shot answers to every question.

Out: probe.parquet with one Score per question, and knowledge.json with statistics of all of them
(calibration, letter bias, grades).
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ift_scale.config import Config, ProbeConfig
from ift_scale.engines.pool import engine_workers
from ift_scale.engines.protocol import identity, resolved_identity
from ift_scale.io.files import write_json
from ift_scale.io.manifests import digest_of, has_key
from ift_scale.io.progress import Bar
from ift_scale.probe import free, selection
from ift_scale.probe.selection import is_probed, is_probed_of_kind
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks.environment import Ranks, engines_on_gpu
from ift_scale.records import KNOWLEDGE_FILE, PROBE_FILE, QUESTIONS_FILE, Question
from ift_scale.scoring import embedding
from ift_scale.scoring.letters import LetterAsker, few_shot_asker
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.runner import compute, share_of
from ift_scale.scoring.scores import SCHEMA, ChoiceScores, write_rows
from ift_scale.scoring.shards import open_shard
from ift_scale.scoring.target import Target, work_of
from ift_scale.stage import Context, Stage, Task

# Settings of probe.reliability that change only what is computed from raw log-probabilities.
POSTPROCESSING = {
    "decide_by",
    "grades",
    "grade_rule",
    "grade_level",
    "grade_samples",
    "grade_temperature",
}
VIEWS = "views.parquet"
"""One row per question: draws, orders and log-probabilities view by view.

`orders` gives the option shown as each letter.
"""
VIEWS_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("draws", pa.list_(pa.int16())),
        ("orders", pa.list_(pa.int8())),
        ("logprobs", pa.list_(pa.float64())),
    ]
)


class _Asker:
    """Asks choice chunks by letters and free chunks by generation; a chunk has one kind."""

    def __init__(self, letters: LetterAsker, generated: free.FreeAsker):
        self.letters, self.generated = letters, generated

    def write(self, questions: list[Question]) -> object:
        return (self.letters if questions[0].kind == "choice" else self.generated).write(questions)

    def ask(self, engine: Any, written: Any) -> pa.Table:
        return (self.generated if isinstance(written, free.FreeRequests) else self.letters).ask(
            engine, written
        )


class ProbeStage(Stage):
    name = "probe"
    reads = (f"questions/{QUESTIONS_FILE}",)
    version = 4

    def tasks(self, context: Context) -> list[Task]:
        inputs = {
            "model": context.base_digest,
            "questions": context.digest("questions", QUESTIONS_FILE),
        }
        settings = identity(context.config.probe, context.config.model.dtype)
        return self.single(context, digest_of([self.version, settings, inputs]), inputs)

    def total(self, context: Context, pending: Sequence[Task]) -> int:
        return len(context.question_file().select(partial(is_probed, context.config.probe)))

    def hang_limit(self, config: Config) -> float:
        return config.probe.hang_limit

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        ask(
            context.config,
            pending[0],
            context.model_path,
            context.question_file(),
            context.logs,
            context.ranks,
            bar,
        )


def ask(
    config: Config,
    task: Task,
    model_path: Path,
    questions: QuestionFile,
    logs: Path,
    ranks: Ranks | None,
    bar: Bar,
) -> None:
    """Asks all questions on all ranks that call this; rank 0 merges."""
    tokenizer = PromptTokenizer(model_path, config.model.trust_remote_code)
    demonstrations = Demonstrations(
        questions.dev, config.probe.num_shots, config.probe.demonstration_seed
    )
    asker = asker_of(config.probe, tokenizer, demonstrations)
    choice, generated = (
        questions.select(partial(is_probed_of_kind, config.probe, kind))
        for kind in ("choice", "free")
    )
    selection.check_topics(questions, demonstrations, config.probe)
    if config.probe.reliability.decide_by == "debiased":
        selection.check_prior_sample(questions, config.probe)
    target = Target(
        "probe",
        task.folder,
        shard_key(config, task.inputs, engines_on_gpu(ranks), model_path),
        [choice, selection.shuffled_by_topic(questions, generated, config.probe.reliability.seed)],
        asker,
        model_path,
        partial(_finish, config.probe, task, time.monotonic()),
        config.probe.chunk_size,
        partial(has_key, task.folder, task.key),
    )
    embedding.check([target], questions, tokenizer, model_path)
    workers = engine_workers(config.probe, config.model, logs / "probe.log", ranks, bar)
    compute(questions, [target], workers, share_of(ranks), bar)


def _has_letters(path: Path) -> bool:
    """True for a shard of choice questions."""
    with open_shard(path) as shard:
        return "logprobs" in shard.schema_arrow.names


def _finish(
    config: ProbeConfig, task: Task, started: float, target: Target, shards: list[Path]
) -> None:
    """Merges the shards, choice questions first, and closes the artifact."""
    choice = [path for path in shards if _has_letters(path)]
    scores, answered = ChoiceScores(config.reliability), free.FreeSummary()
    scores.estimate_prior(choice)

    def rows_of(table: pa.Table) -> pa.Table:
        if "logprobs" in table.column_names:
            return scores.rows(table)
        rows = free.rows(table)
        answered.add(rows)
        return rows

    write_rows(target.folder / PROBE_FILE, SCHEMA, shards, rows_of)
    if config.reliability.permutations != "none" or config.reliability.demonstration_draws > 1:
        write_rows(target.folder / VIEWS, VIEWS_SCHEMA, choice, _views)
    knowledge = scores.summary.as_json(scores.prior) | answered.as_json()
    write_json(target.folder / KNOWLEDGE_FILE, knowledge)
    work = work_of(target)
    counts = {
        "questions": scores.summary.questions,
        "accuracy": knowledge["accuracy"],
        "mean_letter_mass": knowledge["mean_letter_mass"],
        "free_questions": answered.questions,
        "computed_questions": work.questions,
        "prompt_tokens": work.tokens,
    }
    seconds = {"total": time.monotonic() - started} | work.seconds
    task.close(config.model_dump(), counts, seconds)


def shard_key(config: Config, inputs: dict[str, str], on_gpu: bool, model_path: Path) -> str:
    """Returns the digest of what raw log-probabilities depend on, without later processing."""
    settings = resolved_identity(
        config.probe, config.model.dtype, on_gpu, model_path, config.model.trust_remote_code
    )
    reliability = config.probe.reliability
    settings["reliability"] = reliability.model_dump(exclude=POSTPROCESSING)
    if reliability.cloze:
        settings["reliability"]["cloze"] = "pmi" if reliability.cloze == "pmi" else "texts"
    return digest_of([STAGE.version, settings, inputs])


def asker_of(
    config: ProbeConfig, tokenizer: PromptTokenizer, demonstrations: Demonstrations
) -> "_Asker":
    """Returns the probe's asker for choice and free questions."""
    letters = few_shot_asker(tokenizer, demonstrations, config)
    return _Asker(letters, free.FreeAsker(tokenizer, demonstrations, config))


def _views(table: pa.Table) -> pa.Table:
    return table.select(["id", "draws", "orders", "logprobs"]).rename_columns(VIEWS_SCHEMA.names)


STAGE = ProbeStage()
