"""Prepares the held-out questions of the arms' own pools (HOMO) before the ranks start.

In: the questions stage's file and the base model's probe. Out: a file of token ids for each domain
(or group of domains, for arms trained across domains), and a schedule for each arm. Prompts come
from the same code as in the evaluate stage, so that both use the same tokens.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from ift_scale.config import Config
from ift_scale.engines.protocol import ScoreRequest
from ift_scale.errors import ConfigError
from ift_scale.io.manifests import digest_of, file_digest
from ift_scale.io.progress import say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.records import GRADES, Question, test_group
from ift_scale.scoring.letters import Chat, LetterAsker
from ift_scale.scoring.options import OptionRequest
from ift_scale.scoring.question_file import GroupKey, QuestionFile
from ift_scale.train.data import packing
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.data.tokenize import tokenizer_digest
from ift_scale.train.job import ArmJob, LiveJob, trained_lengths
from ift_scale.train.live import tokens as live_tokens
from ift_scale.train.live.tokens import LiveSet
from ift_scale.train.measurement import schedule
from ift_scale.train.measurement.schedule import Schedule

Jobs = dict[str, LiveJob]
"""The live jobs by arm name."""

_NO_QUESTIONS = "its pool has no choice question in a test split"
_TOO_EXPENSIVE = (
    f"its arms are too short for {schedule.MIN_MEASUREMENTS} measurements of"
    f" {schedule.MIN_QUESTIONS} questions within {schedule.BUDGET:.0%} of their cost;"
    " set train.live.every to a number of steps to measure anyway"
)


@dataclass(frozen=True)
class LiveSource:
    """The finished questions stage, and the base model's answers in probe.parquet."""

    questions: QuestionFile
    probe: Path


def is_homo(domains: Sequence[str], group: GroupKey) -> bool:
    """True for choice questions in the test splits of the domains' own pools."""
    is_tested = group.kind == "choice" and group.split == "test"
    return is_tested and test_group(domains, group.domain, group.collection, group.group) == "HOMO"


def in_order(questions: Sequence[Question]) -> list[Question]:
    """Returns the questions in the order in which a subset is taken, the same in every run."""
    return sorted(
        questions, key=lambda question: (zlib.crc32(f"live/{question.id}".encode()), question.id)
    )


def base_answers(probe: Path, domains: Sequence[str]) -> dict[str, tuple[list[float], str | None]]:
    """Returns (option probabilities, grade) of each held-out question from the probe."""
    filters = [
        ("kind", "=", "choice"),
        ("collection", "=", "pool"),
        ("split", "=", "test"),
        ("domain", "in", list(domains)),
    ]
    table = pq.read_table(probe, columns=["question_id", "probs", "grade"], filters=filters)
    return {row["question_id"]: (row["probs"], row["grade"]) for row in table.to_pylist()}


def prepare(
    source: LiveSource,
    domains: Sequence[str],
    tokenizer: PromptTokenizer,
    template: str,
    response: str = "letter_text",
) -> LiveSet | None:
    """Returns the domains' held-out questions, or None. `response`: as in ConstructConfig."""
    questions = in_order(source.questions.read(source.questions.select(partial(is_homo, domains))))
    if not questions:
        return None
    written = LetterAsker(Chat(tokenizer, template, response), plain).write(questions)
    assert (written.source[:, 0] == np.arange(len(questions))).all()  # one view per question
    answers = [question.answer for question in questions]
    assert None not in answers
    num_choices = [len(question.choices) for question in questions]
    prompts = [
        _prompts(request, answer or 0, max(num_choices))
        for request, answer in zip(written.requests, answers, strict=True)
    ]
    flat = [prompt for of_question in prompts for prompt in of_question]
    by_id = base_answers(source.probe, domains)
    base = [by_id[question.id] for question in questions]
    order: tuple[str, ...] = GRADES
    grades = [-1 if grade is None else order.index(grade) for _, grade in base]
    return LiveSet(
        _tokens(flat),
        questions_N=np.repeat(np.arange(len(questions)), list(map(len, prompts))),
        letters_PC=np.concatenate([prompt.letters_PC for prompt in flat]),
        num_choices_Q=np.array(num_choices),
        answers_Q=np.array(answers, dtype=np.int64),
        base_QC=_padded([probs for probs, _ in base], 0.0),
        grades_Q=np.array(grades),
        ids_Q=np.array([question.id for question in questions]),
    )


class _Prompt(NamedTuple):
    """A prompt whose last ids are scored; `letters_PC` has a row for each scored id."""

    ids: list[int]
    letters_PC: np.ndarray


def _prompts(request: OptionRequest, answer: int, width: int) -> list[_Prompt]:
    """Returns one prompt if every letter is one token, else one per option."""
    count = len(request.options)
    if isinstance(request, ScoreRequest):
        letters_PC = np.full((1, width), -1)
        letters_PC[0, :count] = request.options
        return [_Prompt([*request.prompt, request.options[answer]], letters_PC)]
    prompts = []
    for number, option in enumerate(request.options):
        letters_PC = np.full((len(option), width), -1)
        letters_PC[:, number] = option
        prompts.append(_Prompt(request.prompt + option, letters_PC))
    return prompts


def _tokens(prompts: Sequence[_Prompt]) -> TokenizedSet:
    """Returns the prompts laid end to end, with the scored tokens supervised."""
    offsets = np.cumsum([0, *(len(prompt.ids) for prompt in prompts)])
    supervised = np.zeros(offsets[-1], dtype=bool)
    for end, prompt in zip(offsets[1:], prompts, strict=True):
        supervised[end - len(prompt.letters_PC) : end] = True
    ids = np.array([token for prompt in prompts for token in prompt.ids], dtype=np.int32)
    return TokenizedSet(ids, supervised, offsets, np.ones(len(prompts)), num_truncated=0)


def _padded(rows: Sequence[Sequence[float]], fill: float) -> np.ndarray:
    """Returns rows of different lengths as one float64 array, padded with `fill`."""
    table = np.full((len(rows), max(map(len, rows))), fill)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def cached(
    source: LiveSource,
    domains: Sequence[str],
    tokenizer: PromptTokenizer,
    template: str,
    cache: Path,
    response: str = "letter_text",
) -> Path | None:
    """Returns the domains' file of questions, or None if they have none.

    The file is written if none exists for the same questions, probe, tokenizer and template, or if
    it is damaged, which is reported.
    """
    inputs = [
        *map(file_digest, (source.questions.path, source.probe)),
        tokenizer_digest(tokenizer),
    ]
    digest = digest_of([live_tokens.FORMAT, inputs, template, response, domains])
    path = cache / f"live-{digest[:16]}.npz"
    if not live_tokens.is_intact(path):
        if path.exists():
            say(f"{path}: damaged live questions; they are prepared again")
        questions = prepare(source, domains, tokenizer, template, response)
        if questions is None:
            return None
        live_tokens.save(questions, path)
    return path


def schedule_of(
    questions: LiveSet, lengths: np.ndarray, config: Config, hidden_size: int
) -> Schedule | None:
    """Returns the arm's schedule, or None if `auto` finds none within its budget.

    `lengths`: number of computed tokens of each example that is trained on.
    Depends on this arm only and not on others of the launch, because with early stopping the
    schedule affects the weights.
    """
    train = config.train
    costs_N = packing.cost(questions.tokens.computed_lengths, hidden_size)
    costs_Q = questions.costs(costs_N)[: train.live.max_questions]
    arm_cost = train.epochs * packing.cost(lengths, hidden_size).sum()
    num_steps = train.epochs * packing.steps_per_epoch(len(lengths), train.global_batch_size)
    if train.live.every == "auto":
        return schedule.automatic(costs_Q, arm_cost, num_steps)
    return schedule.fixed(train.live.every, costs_Q, arm_cost, num_steps)


def build_jobs(
    source: LiveSource,
    arms: Sequence[ArmJob],
    config: Config,
    tokenizer: PromptTokenizer,
    cache: Path,
    hidden_size: int,
) -> Jobs:
    """Returns the live job of each arm that has one, and prints one line per distinct schedule.

    Raises ConfigError if early stopping is set and an arm has no live knowledge.
    """
    live_jobs: Jobs = {}
    lines: dict[str, None] = {}  # ordered, without duplicates
    files: dict[str, Path | None] = {}
    for work in arms:
        domain = work.arm.domain
        if domain not in files:
            files[domain] = cached(
                source,
                work.arm.own_domains,
                tokenizer,
                config.evaluate.template,
                cache,
                config.construct.response,
            )
        path = files[domain]
        questions = live_tokens.load(path) if path else None
        plan = None
        if questions is not None:
            plan = schedule_of(questions, trained_lengths(work), config, hidden_size)
        if plan is None or questions is None:
            reason = _TOO_EXPENSIVE if questions else _NO_QUESTIONS
            if config.train.live.early_stopping is not None:
                problem = f"train.live.early_stopping: no live knowledge of {domain}: {reason}"
                raise ConfigError("settings", [problem])
            lines[f"train: no live knowledge of {domain}: {reason}"] = None
        else:
            live_jobs[work.arm.name] = LiveJob(
                questions=str(path), num_questions=plan.num_questions, every=plan.every
            )
            text = describe(plan, len(questions.ids_Q))
            lines[f"train: live knowledge of {domain}: {text}"] = None
    for line in lines:
        say(line)
    return live_jobs


def describe(plan: Schedule, num_available: int) -> str:
    """Describes a schedule, and why it leaves questions out."""
    asked = f"{num_available} questions"
    if plan.num_questions < num_available:
        asked = (
            f"{plan.num_questions} of {num_available} questions (more are too expensive or over"
            " train.live.max_questions)"
        )
    return f"{asked} every {plan.every} steps, for about {plan.share:.0%} of an arm's FLOPs"
