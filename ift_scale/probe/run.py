"""The probe stage: what the base model answers, few-shot, to every question.

Out: probe.parquet, a Score a question, and knowledge.json, what all of them together tell (calibration, letter bias, grades).
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ift_scale import draws
from ift_scale.config import Config, ProbeConfig
from ift_scale.engines.pool import slots_for
from ift_scale.engines.protocol import resolved_identity
from ift_scale.errors import DataError, Place
from ift_scale.io.files import write_json
from ift_scale.io.manifests import digest_of, has_key, write_manifest
from ift_scale.io.progress import Bar
from ift_scale.probe import free
from ift_scale.prompts import views
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks.environment import Ranks, engines_on_gpu
from ift_scale.records import Question
from ift_scale.scoring import embedding
from ift_scale.scoring.letters import Cloze, FewShot, LetterAsker
from ift_scale.scoring.question_file import GroupKey, QuestionFile
from ift_scale.scoring.runner import Target, compute, share_of, work_of
from ift_scale.scoring.scores import SCHEMA, ChoiceScores, write_rows

VERSION = 4
FILE = "probe.parquet"
KNOWLEDGE = "knowledge.json"
AFTERWARDS = {
    "decide_by",
    "grades",
    "grade_rule",
    "grade_level",
    "grade_samples",
    "grade_temperature",
}
_ROWS_AT_ONCE = 1000
VIEWS = "views.parquet"
"""Every view of every question; `orders` and `logprobs` view by view, `orders` naming the option shown as each letter."""
VIEWS_SCHEMA = pa.schema([
    ("question_id", pa.string()), ("draws", pa.list_(pa.int16())), ("orders", pa.list_(pa.int8())),
    ("logprobs", pa.list_(pa.float64())),
])  # fmt: skip


def wanted(config: ProbeConfig, group: GroupKey) -> bool:
    """Whether questions of this group are asked: all but demonstrations, free ones by setting."""
    return group.split != "dev" and (group.kind == "choice" or config.free.ask)


def _of_kind(config: ProbeConfig, kind: str, group: GroupKey) -> bool:
    return group.kind == kind and wanted(config, group)


class _Asker:
    """Choice chunks by letters, free chunks by generation; a chunk has one kind."""

    def __init__(self, letters: LetterAsker, generated: free.FreeAsker):
        self.letters, self.generated = letters, generated

    def write(self, questions: list[Question]) -> object:
        return (self.letters if questions[0].kind == "choice" else self.generated).write(questions)

    def ask(self, engine: Any, written: Any) -> pa.Table:
        return (self.generated if isinstance(written, free.Written) else self.letters).ask(
            engine, written
        )


def run(
    config: Config,
    folder: Path,
    key: str,
    inputs: dict[str, str],
    model_path: Path,
    questions: QuestionFile,
    logs: Path,
    ranks: Ranks | None,
    bar: Bar,
) -> None:
    """Ask everything, on as many ranks as call this; rank 0 merges."""
    tokenizer = PromptTokenizer(model_path)
    demonstrations = Demonstrations(
        questions.dev, config.probe.num_shots, config.probe.demonstration_seed
    )
    asker = asker_of(config.probe, tokenizer, demonstrations)
    choice, generated = (
        questions.select(partial(_of_kind, config.probe, kind)) for kind in ("choice", "free")
    )
    check_topics(questions, demonstrations, config.probe)
    if config.probe.reliability.decide_by == "debiased":
        check_prior_sample(questions, config.probe)
    target = Target(
        "probe",
        folder,
        shard_key(config, inputs, engines_on_gpu(ranks)),
        [choice, by_rank(questions, generated, config.probe.reliability.seed)],
        asker,
        model_path,
        partial(_finish, config.probe, key, inputs, time.monotonic()),
        config.probe.chunk_size,
        partial(has_key, folder, key),
    )
    embedding.check([target], questions, tokenizer, model_path)
    slots = slots_for(config.probe, config.model.dtype, logs / "probe.log", ranks, bar)
    compute(questions, [target], slots, share_of(ranks), bar)


def _finish(
    config: ProbeConfig,
    key: str,
    inputs: dict[str, str],
    started: float,
    target: Target,
    shards: list[Path],
) -> None:
    """Merge the shards, those of choice questions first, and close the artifact."""
    choice = [path for path in shards if "logprobs" in pq.read_schema(path).names]
    scores, answered = ChoiceScores(config.reliability), free.Summary()
    scores.estimate_prior(choice)

    def rows_of(table: pa.Table) -> pa.Table:
        if "logprobs" in table.column_names:
            return scores.rows(table)
        found = free.rows(table)
        answered.add(found)
        return found

    write_rows(target.folder / FILE, SCHEMA, shards, rows_of)
    if config.reliability.permutations != "none" or config.reliability.demonstration_draws > 1:
        write_rows(target.folder / VIEWS, VIEWS_SCHEMA, choice, _views)
    knowledge = scores.summary.as_json(scores.prior) | answered.as_json()
    write_json(target.folder / KNOWLEDGE, knowledge)
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
    write_manifest(target.folder, "probe", key, config.model_dump(), inputs, counts, seconds)


def shard_key(config: Config, inputs: dict[str, str], on_gpu: bool) -> str:
    """What raw log-probabilities depend on: not on what is made of them afterwards."""
    settings = resolved_identity(config.probe, config.model.dtype, on_gpu)
    settings["reliability"] = config.probe.reliability.model_dump(exclude=AFTERWARDS)
    return digest_of([VERSION, settings, inputs])


def by_rank(questions: QuestionFile, rows: np.ndarray, seed: int) -> np.ndarray:
    """The rows, topic by topic as before, and within a topic by a hash of the id.

    An engine samples the answers of a chunk from one random stream, so chunks should not follow the order of a file.
    """
    ranks, topics = np.empty(len(rows), dtype=np.uint64), np.empty(len(rows), dtype=np.int32)
    numbers: dict[tuple[str, str], int] = {}
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        for place, question in enumerate(
            questions.read(rows[start : start + _ROWS_AT_ONCE]), start=start
        ):
            ranks[place] = draws.rank(f"free/{seed}", question.id)
            topics[place] = numbers.setdefault((question.collection, question.topic), len(numbers))
    order: np.ndarray = rows[np.lexsort((ranks, topics))]
    return order


def check_prior_sample(questions: QuestionFile, config: ProbeConfig) -> None:
    """DataError for an option count of which no question is in the letter prior's sample, before anything starts."""
    share, seed = config.reliability.prior_share, config.reliability.seed
    counts = {g.num_choices for g in questions.groups if g.kind == "choice" and wanted(config, g)}
    for num_choices in sorted(counts) if config.reliability.permutations != "circular" else ():
        rows = questions.select(partial(_with_choices, config, num_choices))
        if not any(
            views.in_prior_sample(questions.read(row[None])[0].id, share, seed) for row in rows
        ):
            raise DataError(
                Place("probe.reliability.prior_share"),
                f"none of the {len(rows)} questions with {num_choices} options is in the prior's sample",
                "Raise it, so that questions of every option count are sampled",
                share,
            )


def _with_choices(config: ProbeConfig, num_choices: int, group: GroupKey) -> bool:
    return group.kind == "choice" and group.num_choices == num_choices and wanted(config, group)


def asker_of(
    config: ProbeConfig, tokenizer: PromptTokenizer, demonstrations: Demonstrations
) -> "_Asker":
    cloze = (
        Cloze(tokenizer, demonstrations, config.whole_prompts) if config.reliability.cloze else None
    )
    few_shot = FewShot(tokenizer, demonstrations, config.whole_prompts)
    letters = LetterAsker(few_shot, views.views_of(config.reliability), cloze)
    return _Asker(letters, free.FreeAsker(tokenizer, demonstrations, config))


def check_topics(
    questions: QuestionFile, demonstrations: Demonstrations, config: ProbeConfig
) -> None:
    """DataError for a topic without enough demonstrations, before anything starts."""
    for group, row in zip(questions.groups, questions.first_rows, strict=True):
        if wanted(config, group):
            demonstrations.of(questions.read(np.array([row]))[0])


def _views(table: pa.Table) -> pa.Table:
    return table.select(["id", "draws", "orders", "logprobs"]).rename_columns(VIEWS_SCHEMA.names)
