"""A pool of writers: chunks of jobs are written, checked, and written again if they fail.

The contents of a chunk do not depend on what is stored already. A stage that was killed and resumes
therefore writes the same texts as without the kill.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ift_scale.config.write import WriteConfig
from ift_scale.io.manifests import digest_of
from ift_scale.io.progress import Bar
from ift_scale.prompts.explanations import contradicts, names
from ift_scale.prompts.paraphrases import flaws, unquoted
from ift_scale.records import Question, Text
from ift_scale.write.needs import Need
from ift_scale.write.prompts import Prompt
from ift_scale.write.store import Store

_POLL_SECONDS = 0.1
_SECONDS_TO_END = 5.0


class TextWriter(Protocol):
    """A writer that belongs to one thread."""

    def write(self, prompts: Sequence[Prompt], seed: int) -> list[str]:
        """Returns a text per prompt, cut at its end; empty if the model wrote nothing."""

    def stop(self) -> None:
        """Ends a running `write` at once; called by another thread."""

    def close(self) -> None:
        """Releases the writer; called by its own thread when no chunk is left."""


@dataclass(frozen=True)
class TextJob:
    """One text to write. `identity` is everything it depends on besides the prompt."""

    need: Need
    question: Question
    author: Any
    prompt: Prompt
    identity: Any

    def key(self, attempt: int) -> str:
        """Returns the digest under which the attempt's text is stored."""
        return digest_of([self.identity, self.prompt._asdict() | {"question_id": None}, attempt])


def failures(settings: WriteConfig, question: Question, need: Need, text: str) -> list[Any]:
    """Returns the checks that a text fails.

    A context need not name the answer, but must not call another option the answer.
    """
    if not text.strip():
        return ["empty"]
    if need.kind == "paraphrase":
        return [*flaws(text, question)]
    failed = []
    target = question.answer if need.kind == "context" else need.target
    if question.kind == "choice" and target is not None:
        if (
            settings.must_name_target
            and need.kind == "explanation"
            and not names(text, question, target)
        ):
            failed.append("does not name the target")
        if settings.must_not_contradict and contradicts(text, question, target):
            failed.append("contradicts the target")
    return failed


def write_chunk(
    chunk: Sequence[TextJob], writer: TextWriter, attempts: int, settings: WriteConfig, store: Store
) -> list[Text]:
    """Returns a chunk's texts: of each job the first that passes its checks, else the last."""
    done: dict[Need, Text] = {}
    pending = list(chunk)
    for attempt in range(1, attempts + 1):
        # Only texts that are not stored yet are written; the seed follows from the first of them.
        keys = {job.need: job.key(attempt) for job in pending}
        missing = {key: job for job in pending if (key := keys[job.need]) not in store}
        if missing:
            seed = int(next(iter(missing))[:8], 16)
            texts = writer.write([job.prompt for job in missing.values()], seed)
            store.add(dict(zip(missing, texts, strict=True)))
        for job in pending:
            text = store[keys[job.need]]
            if job.need.kind == "paraphrase":
                text = unquoted(text)
            failed = failures(settings, job.question, job.need, text)
            id, kind, target, _ = job.need
            done[job.need] = Text(
                question_id=id,
                kind=kind,
                target=target,
                author=job.author,
                text=text,
                attempts=attempt,
                failed=failed,
            )
        pending = [job for job in pending if done[job.need].failed]
    return [done[job.need] for job in chunk]


Chunk = Sequence[TextJob]
Work = Callable[[Chunk, TextWriter], list[Text]]


class WorkerPool:
    """Threads that process chunks until none is left; the first error ends all of them."""

    def __init__(self, writers: Sequence[TextWriter], bar: Bar):
        self._writers, self._bar, self._before = writers, bar, bar.done
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._errors: list[BaseException] = []
        self._texts: dict[int, list[Text]] = {}
        self._done = 0

    def run(self, chunks: Iterable[Chunk], work: Work) -> list[Text]:
        """Returns the texts of all chunks, in the chunks' order."""
        coming = enumerate(chunks)
        threads = [
            threading.Thread(target=self._work, args=(writer, coming, work), daemon=True)
            for writer in self._writers
        ]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and not self._errors:
                self._stopping.wait(_POLL_SECONDS)
                self._show()
            if self._errors:
                raise self._errors[0]
            self._show()
        finally:
            self._stopping.set()
            for writer in self._writers:
                writer.stop()
            for thread in threads:
                thread.join(_SECONDS_TO_END)
        return [text for _, texts in sorted(self._texts.items()) for text in texts]

    def _work(self, writer: TextWriter, coming: Iterator[tuple[int, Chunk]], work: Work) -> None:
        """Runs one writer's thread: processes chunks until none is left or the pool stops."""
        try:
            while not self._stopping.is_set():
                with self._lock:
                    number, chunk = next(coming, (-1, ()))
                if number < 0:
                    return
                texts = work(chunk, writer)
                with self._lock:
                    self._texts[number] = texts
                    self._done += len(texts)
        except BaseException as error:
            self._errors.append(error)
        finally:
            writer.close()

    def _show(self) -> None:
        self._bar.advance(self._before + self._done - self._bar.done)
