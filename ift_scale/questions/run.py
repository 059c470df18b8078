"""The questions stage: writes all sources of the configuration into one questions.jsonl.

Questions are streamed from their source to the file, and the audit reads them there. Memory grows
by 18 bytes per train question (hashes of its id and content, and its domain), so pools of millions
of questions fit.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ift_scale.config import Config
from ift_scale.errors import DataError, Place
from ift_scale.io.files import atomic_folder, write_jsonl
from ift_scale.io.manifests import digest_of
from ift_scale.io.progress import Bar
from ift_scale.questions import audit, duplicates, sources
from ift_scale.records import QUESTIONS_FILE, Question
from ift_scale.stage import Context, Stage, Task

_QUESTIONS_A_STEP = 1000


class QuestionCounts:
    """Counts, the pools' splits and hashes of ids of all questions written so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.ids = duplicates.SeenIds()
        self._pool_splits: Counter[tuple[str, str]] = Counter()

    def add(self, question: Question) -> None:
        self.counts[f"{question.collection}/{question.split}/{question.kind}"] += 1
        self.ids.add(question.id)
        if question.collection == "pool" and question.kind == "choice":
            self._pool_splits[question.domain, question.split] += 1

    def remove(self, question: Question, reason: str) -> None:
        """Uncounts a question that the audit leaves out of the file."""
        self.counts[f"{question.collection}/{question.split}/{question.kind}"] -= 1
        self.left_out[reason] += 1
        if question.collection == "pool" and question.kind == "choice":
            self._pool_splits[question.domain, question.split] -= 1

    def check_pools(self, needed: Sequence[str]) -> None:
        """Raises DataError for a pool without questions of a needed split.

        Without train questions no arm can be built, without test questions none can be measured.
        """
        for domain in dict.fromkeys(domain for domain, _ in self._pool_splits):
            for split in needed:
                if not self._pool_splits[domain, split]:
                    remedy = f"Give the domain's source {split} questions, or remove it"
                    if (domain, split) in self._pool_splits:
                        remedy = "The audit removed all of them: change questions.audit.remove"
                    raise DataError(
                        Place(f"domain '{domain}'", field="split"),
                        f"its pool has no {split} question",
                        remedy,
                    )


def counted(
    questions: Iterable[tuple[int, Place, Question]], tally: QuestionCounts, bar: Bar
) -> Iterator[Question]:
    """Passes the questions through, counting them and advancing the bar."""
    for done, (_, _, question) in enumerate(questions, start=1):
        tally.add(question)
        if done % _QUESTIONS_A_STEP == 0:
            bar.advance(_QUESTIONS_A_STEP)
        yield question


class QuestionsStage(Stage):
    name = "questions"
    version = 3

    def tasks(self, context: Context) -> list[Task]:
        config = context.config
        inputs = context.once("question sources", lambda: sources.input_digests(config))
        key = digest_of([self.version, config.questions.model_dump(), inputs])
        return self.single(context, key, inputs)

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        gather(context.config, pending[0], bar)


def gather(config: Config, task: Task, bar: Bar) -> None:
    """Writes questions.jsonl; DataError names the file, line and field of any problem."""
    started = time.monotonic()
    tally = QuestionCounts()
    needed = ("train", "test") if config.construct.official is None else ("test",)
    with atomic_folder(task.folder) as temporary:
        write_jsonl(
            temporary / QUESTIONS_FILE, counted(sources.placed(config, tally.left_out), tally, bar)
        )
        repeated = tally.ids.repeated()
        if repeated:
            duplicates.refuse(
                (
                    (number, place, question.id)
                    for number, place, question in sources.placed(config)
                ),
                repeated,
            )
        tally.check_pools(needed)
        result = audit.audit(temporary / QUESTIONS_FILE, config.questions.audit, temporary)
        left_out = audit.rows_left_out(result, config.questions.audit)
        if left_out:
            audit.leave_out(temporary / QUESTIONS_FILE, left_out, tally.remove)
            tally.check_pools(needed)
        reasons = {f"left out: {reason}": count for reason, count in tally.left_out.items()}
        counts = +tally.counts | Counter(reasons) | Counter(result.counts())
        seconds = {"total": time.monotonic() - started}
        task.close(config.questions.model_dump(), dict(counts), seconds, temporary)


STAGE = QuestionsStage()
