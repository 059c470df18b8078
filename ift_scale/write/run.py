"""The write stage: the texts that the sets need, written as configured, and checked.

Out: texts.jsonl, one Text per line, with the checks that it fails; paraphrases, which no set needs,
in paraphrases.jsonl. Generated texts also stay in shards/, where the next run finds them.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ift_scale.config import Config, WriterConfig
from ift_scale.engines.pool import EngineWorker, engine_workers
from ift_scale.errors import DataError, Place
from ift_scale.io.files import write_jsonl
from ift_scale.io.manifests import digest_of
from ift_scale.io.progress import Bar, say
from ift_scale.records import (
    PARAPHRASES_FILE,
    PROBE_FILE,
    QUESTIONS_FILE,
    TEXTS_FILE,
    Score,
    Text,
)
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.scores import train_scores
from ift_scale.stage import Context, Stage, Task
from ift_scale.write.assignment import assign, folder_of, model_digests, settings_of, writer_of
from ift_scale.write.endpoint import Endpoint, EndpointWriter
from ift_scale.write.local import LocalWriter, PromptIds
from ift_scale.write.needs import Need, Role, needs, requirements
from ift_scale.write.pool import TextJob, TextWriter, WorkerPool, write_chunk
from ift_scale.write.prompts import TopicDemonstrations
from ift_scale.write.store import Store


class WriteStage(Stage):
    name = "write"
    reads = (
        f"questions/{QUESTIONS_FILE}",
        f"probe/{PROBE_FILE}",
    )
    version = 2

    def tasks(self, context: Context) -> list[Task]:
        settings, inputs = settings_of(context.config), {}
        if settings is not None:  # otherwise the result is an empty file, whatever was probed
            inputs = {
                "questions": context.digest("questions", QUESTIONS_FILE),
                "probe": context.digest("probe", PROBE_FILE),
            }
            inputs |= model_digests(context.config, context.base_digest)
        return self.single(context, digest_of([self.version, settings, inputs]), inputs)

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        sources = WriteInputs(
            context.model_path,
            context.question_file,
            lambda: train_scores(context.folder("probe") / PROBE_FILE),
        )
        write(context.config, pending[0], sources, context.logs, bar)


@dataclass(frozen=True)
class WriteInputs:
    """The inputs of the stage, read only if any text is needed."""

    model_path: Path
    questions: Callable[[], QuestionFile]
    scores: Callable[[], Mapping[str, Score]]


def write(config: Config, task: Task, sources: WriteInputs, logs: Path, bar: Bar) -> None:
    """Writes texts.jsonl, which is empty if the sets need no text, and paraphrases.jsonl if any."""
    started = time.monotonic()
    texts: list[Text] = []
    counts: dict[str, float] = {"texts": 0}
    seconds: dict[str, float] = {}
    required = requirements(config)
    if required:
        needed = needs(config.construct, required, sources.scores())
        producer = _TextProducer(config, sources.model_path, Store(task.folder), logs, bar)
        texts = producer.texts(needed, sources.questions(), task.inputs)
        counts, seconds = (
            _counts(texts) | {"written_in_this_run": producer.store.added},
            producer.seconds,
        )
    else:
        say("  write: no set needs a written text")
    paraphrases = [text for text in texts if text.kind == "paraphrase"]
    of_sets = [text for text in texts if text.kind != "paraphrase"]
    if config.write.on_failure == "error":
        _refuse_failures(of_sets)
    dropped = config.write.on_failure == "drop"
    _report_failures(of_sets, "dropped, with their questions" if dropped else "kept unchanged")
    _report_failures(paraphrases, "not asked")
    write_jsonl(task.folder / TEXTS_FILE, of_sets)
    path = task.folder / PARAPHRASES_FILE
    if any(requirement.kind == "paraphrase" for requirement in required):
        write_jsonl(path, paraphrases)
    else:
        path.unlink(missing_ok=True)  # of an earlier run with other settings
    seconds = {"total": time.monotonic() - started} | seconds
    task.close(config.write.model_dump(), counts, seconds)


class _TextProducer:
    """Writes all texts, one writer after the other."""

    def __init__(self, config: Config, model_path: Path, store: Store, logs: Path, bar: Bar):
        self.config, self.model_path, self.store = config, model_path, store
        self.logs, self.bar = logs, bar
        self.seconds = {"engine_start": 0.0, "writing": 0.0}

    def texts(
        self, needed: Sequence[Need], questions: QuestionFile, inputs: dict[str, str]
    ) -> list[Text]:
        """Returns the needed texts in order."""
        ids = {need.question_id for need in needed}
        rows = questions.select(lambda group: group.collection == "pool" and group.split == "train")
        by_id = {question.id: question for question in questions.read(rows) if question.id in ids}
        texts, jobs = assign(self.config, inputs, needed, by_id, TopicDemonstrations(questions.dev))
        self.bar.total = sum(map(len, jobs.values()))
        try:
            for role, own in jobs.items():
                texts |= self._written(role, own)
        finally:
            self.store.close()
        return [texts[need] for need in needed]

    def _written(self, role: Role, jobs: Sequence[TextJob]) -> dict[Need, Text]:
        """Returns one role's texts; DataError if all of them are empty."""
        settings = writer_of(self.config, role)
        started = time.monotonic()
        # Greedy decoding gives the same text in every attempt.
        attempts = 1 if settings.temperature == 0 else self.config.write.attempts
        work = partial(write_chunk, attempts=attempts, settings=self.config.write, store=self.store)
        # An engine samples a chunk's texts from one random stream, so chunks must not follow the
        # order of the pool.
        jobs = sorted(jobs, key=lambda job: job.key(1))
        size = 1 if settings.kind == "endpoint" else settings.chunk_size
        chunks = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        workers = self._engine_workers(settings, role)
        written = WorkerPool(self._writers(settings, role, workers, len(jobs)), self.bar).run(
            chunks, work
        )
        if not any(text.text for text in written):
            raise _nothing(role, settings, len(written), attempts)
        starts = sum(worker.seconds["engine_start"] for worker in workers)
        self.seconds["engine_start"] += starts
        self.seconds["writing"] += time.monotonic() - started - starts / max(1, len(workers))
        return dict(zip((job.need for job in jobs), written, strict=True))

    def _engine_workers(self, settings: WriterConfig, role: Role) -> list[EngineWorker]:
        if settings.kind == "endpoint":
            return []
        model = self.config.model
        if settings.kind != "base_model":
            # The setting is about the base model's folder. Another writer's code is never run.
            model = model.model_copy(update={"trust_remote_code": False})
        return engine_workers(settings, model, self.logs / f"write-{role}.log", None, self.bar)

    def _writers(
        self, settings: WriterConfig, role: Role, workers: Sequence[EngineWorker], num_jobs: int
    ) -> list[TextWriter]:
        section = f"write.{role}"
        if settings.kind == "endpoint":
            endpoint = Endpoint(settings, section)
            return [EndpointWriter(endpoint) for _ in range(min(settings.concurrency, num_jobs))]
        path = self.model_path if settings.kind == "base_model" else folder_of(settings, role)
        trusted = settings.kind == "base_model" and self.config.model.trust_remote_code
        ids = PromptIds(path, section, trusted)
        return [LocalWriter(worker, path, ids, settings, section) for worker in workers]


def _nothing(role: Role, settings: WriterConfig, count: int, attempts: int) -> DataError:
    return DataError(
        Place(f"write.{role}"),
        f"returned nothing at all: each of {count:,} texts is empty, after {attempts} attempts",
        f"Check that write.{role}.style = {settings.style} suits the model (urial and plain are for"
        " base models, chat for models with a chat template) and that max_tokens leaves room for an"
        " answer",
    )


def _counts(texts: Sequence[Text]) -> dict[str, float]:
    written = [text for text in texts if text.author != "dataset"]
    counts: dict[str, float] = {
        "texts": len(texts),
        "from_dataset": len(texts) - len(written),
        "written": len(written),
        "written_anew": sum(text.attempts > 1 for text in written),
        "failed": sum(bool(text.failed) for text in texts),
    }
    kinds = Counter(f"{text.kind}/{text.author}" for text in texts)
    reasons = Counter(
        f"{text.kind}/{text.author}/{reason}" for text in texts for reason in text.failed
    )
    return counts | dict(sorted(kinds.items())) | dict(sorted(reasons.items()))


def _failures(texts: Sequence[Text]) -> str:
    """Returns the number of texts that fail checks, and which; empty if none does."""
    failed = [text for text in texts if text.failed]
    reasons = Counter(
        f"{text.kind} by {text.author}: {reason}" for text in failed for reason in text.failed
    )
    listed = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common())
    return f"{len(failed):,} of {len(texts):,} texts fail their checks: {listed}" if failed else ""


def _report_failures(texts: Sequence[Text], fate: str) -> None:
    if problem := _failures(texts):
        say(f"  write: {problem}; they are {fate}")


def _refuse_failures(texts: Sequence[Text]) -> None:
    """Raises DataError if a text fails."""
    if problem := _failures(texts):
        raise DataError(
            Place("write"),
            problem,
            "Raise write.attempts, choose another writer, or set write.on_failure to drop or keep;"
            " finished texts are kept",
            [text.question_id for text in texts if text.failed][:3],
        )


STAGE = WriteStage()
