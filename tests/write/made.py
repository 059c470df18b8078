"""Shared by the tests of the write stage: a small pool with scores, and scripted writers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ift_scale.config import Config
from ift_scale.config.file import from_dict
from ift_scale.engines.protocol import Sampling, TextRequest
from ift_scale.io.files import read_jsonl, write_jsonl
from ift_scale.io.manifests import Manifest, read_manifest
from ift_scale.io.progress import Bar
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import TEXTS_FILE, Question, Score, Text
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.stage import Task
from ift_scale.write import assignment, run
from ift_scale.write.run import WriteInputs

CHOICES = ["copper", "oak", "glass", "steel"]
# (answer, prediction, confidence, grade) of q0, q1, ...: right, wrong, then both but uncertain
KNOWN = [
    (0, 0, 0.9, "HighlyKnown"),
    (1, 2, 0.8, "Unknown"),
    (2, 2, 0.4, "MaybeKnown"),
    (3, 0, 0.3, "Unknown"),
]


def question(
    number: int, split: str = "train", explanation: str | None = None, **parts: Any
) -> Question:
    fields = {
        "domain": "d",
        "subject": "d",
        "collection": "pool",
        "question": f"What is the machine Q{number} made of?",
    }
    fields |= {"choices": CHOICES, "answer": KNOWN[number % 4][0]} | parts
    return Question(id=f"q{number}", split=split, explanation=explanation, **fields)


def score(number: int, domain: str = "d", kind: str = "choice") -> Score:
    answer, prediction, confidence, grade = KNOWN[number % 4]
    return Score(
        kind=kind,  # type: ignore[arg-type]
        question_id=f"q{number}",
        domain=domain,
        subject=domain,
        collection="pool",
        split="train",
        answer=answer,
        logprobs=None,
        probs=None,
        letter_mass=None,
        prediction=prediction,
        confidence=confidence,
        correct=answer == prediction,
        grade=grade,  # type: ignore[arg-type]
    )


def config(folder: Path, write: dict[str, Any] | None = None, **construct: Any) -> Config:
    construct = {"response": "letter_text_explanation"} | construct
    return from_dict({"output_dir": str(folder), "write": write or {}, "construct": construct})


def stage(
    settings: Config,
    questions: Sequence[Question],
    model: Path,
    scores: Mapping[str, Score] | None = None,
) -> tuple[list[Text], Manifest]:
    """The write stage on these questions, with KNOWN's knowledge unless scores are given."""
    folder = Path(settings.output_dir)
    write_jsonl(folder / "questions.jsonl", questions)
    known = scores or {
        q.id: score(int(q.id[1:]), q.domain, q.kind) for q in questions if q.split == "train"
    }
    sources = WriteInputs(model, lambda: QuestionFile(folder / "questions.jsonl"), lambda: known)
    inputs = assignment.model_digests(settings, "base")
    run.write(
        settings,
        Task("write", folder / "write", "key", inputs),
        sources,
        folder / "logs",
        Bar("write", None, None),
    )
    manifest = read_manifest(folder / "write")
    assert manifest is not None
    return read_jsonl(folder / "write" / TEXTS_FILE, Text), manifest


class ScriptedWorker:
    """A worker whose engine answers by `say(prompt, seed)`; raises `death` after some prompts."""

    def __init__(
        self,
        model: Path,
        say: Callable[[str, int], str],
        dies_after: int | None = None,
        death: type[Exception] = RuntimeError,
    ):
        self._tokenizer, self._say, self._dies_after, self._death = (
            PromptTokenizer(model),
            say,
            dies_after,
            death,
        )
        self.seconds = {"engine_start": 0.0}
        self.prompts: list[str] = []
        self.samplings: list[Sampling] = []
        self.context_length, self.killed, self.closed = 1000, False, False

    def load(self, model_path: Path) -> "ScriptedWorker":
        return self

    def reset_cache(self) -> None:
        """Nothing is kept."""

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> list[list[list[int]]]:
        self.samplings.append(sampling)
        written = []
        for number, request in enumerate(requests):
            prompt = self._tokenizer.decode(request.prompt)
            self.prompts.append(prompt)
            if self._dies_after is not None and len(self.prompts) > self._dies_after:
                raise self._death("killed")
            written.append(
                [self._tokenizer.encode([" " + self._say(prompt, sampling.seed + number)])[0]]
            )
        return written

    def kill(self) -> None:
        self.killed = True

    def close(self) -> None:
        self.closed, self._dies_after = True, None  # a new engine lives
