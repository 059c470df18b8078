"""The scoring core that probing and evaluation share: questions in, `Score` records out, a shard a chunk.

Requests are ordered by topic, so that questions with the same few-shot prefix meet the engine together; the result is in the order
of the questions. Finished shards are kept under the key of what is being scored, so that a killed run goes on behind them.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ift_scale.artifacts import read_parquet, write_parquet
from ift_scale.errors import DataError, Place
from ift_scale.inference.engine import ScoreRequest
from ift_scale.inference.process import EngineProcess
from ift_scale.inference.prompts import Demonstrations, chat_messages, few_shot_prompt, question_text
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.progress import Bar
from ift_scale.records import Question, Score

SHARDS = "shards"
_LENGTHS_CHECKED_FIRST = 32

# Renders questions into engine requests.
Renderer = Callable[[Sequence[Question]], list[ScoreRequest]]


@dataclass
class Work:
    """Questions and prompt tokens that an engine computed; shards that were there already count nothing."""

    questions: int = 0
    tokens: int = 0


def few_shot_renderer(tokenizer: PromptTokenizer, demonstrations: Demonstrations) -> Renderer:
    def render(questions: Sequence[Question]) -> list[ScoreRequest]:
        texts = [few_shot_prompt(question, demonstrations.of(question)) for question in questions]
        letters = [tokenizer.letters(t, len(q.choices), separator="") for t, q in zip(texts, questions, strict=True)]
        return [ScoreRequest(ids, options) for ids, options in zip(tokenizer.encode(texts), letters, strict=True)]

    return render


def chat_renderer(tokenizer: PromptTokenizer, template: str) -> Renderer:
    def render(questions: Sequence[Question]) -> list[ScoreRequest]:
        texts = [tokenizer.render(chat_messages(question), template, generation=True) for question in questions]
        letters = [tokenizer.chat_letters(t, len(q.choices), template) for t, q in zip(texts, questions, strict=True)]
        return [ScoreRequest(ids, options) for ids, options in zip(tokenizer.encode(texts), letters, strict=True)]

    return render


def score_questions(
    questions: Sequence[Question],
    render: Renderer,
    start_engine: Callable[[], EngineProcess],
    folder: Path,
    key: str,
    chunk_size: int,
    bar: Bar,
) -> tuple[list[Score], Work]:
    """The scores in the order of `questions`, and what was computed in this call.

    `start_engine` is only called when a shard is missing. Shards lie in `folder`/shards/KEY until `drop_shards`.
    """
    order = sorted(range(len(questions)), key=lambda i: (questions[i].collection, questions[i].topic, i))
    shards = folder / SHARDS / f"{key[:16]}-{chunk_size}"  # a shard of other size holds other questions
    for other in (folder / SHARDS).glob("*"):
        if other != shards:
            shutil.rmtree(other)
    work = Work()
    by_id: dict[str, Score] = {}
    for number, start in enumerate(range(0, len(order), chunk_size)):
        chunk = [questions[i] for i in order[start : start + chunk_size]]
        shard = shards / f"{number:06d}.parquet"
        if shard.is_file():
            scores = read_parquet(shard, Score)
        else:
            requests = render(chunk)
            engine = start_engine()
            if not work.questions:
                # The longest of all are looked at first: better now than after hours.
                longest = sorted(questions, key=lambda q: -len(question_text(q)))[:_LENGTHS_CHECKED_FIRST]
                check_lengths(longest, render(longest), engine.context_length)
            check_lengths(chunk, requests, engine.context_length)
            work.questions += len(chunk)
            work.tokens += sum(len(request.prompt) for request in requests)
            scores = [Score.of(q, logprobs) for q, logprobs in zip(chunk, engine.score(requests), strict=True)]
            write_parquet(shard, scores)
        by_id.update((score.question_id, score) for score in scores)
        bar.advance(len(chunk))
    return [by_id[question.id] for question in questions], work


def drop_shards(folder: Path) -> None:
    """Remove the shards once the whole result stands."""
    shutil.rmtree(folder / SHARDS, ignore_errors=True)


def check_lengths(questions: Sequence[Question], requests: Sequence[ScoreRequest], context_length: int) -> None:
    for question, request in zip(questions, requests, strict=True):
        if len(request.prompt) > context_length:
            raise DataError(
                Place(f"question {question.id}"),
                f"its prompt has {len(request.prompt)} tokens, more than the model's context takes ({context_length})",
                "Lower probe.num_shots, remove the question, or choose a model with a longer context",
            )
