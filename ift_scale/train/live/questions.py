"""The held-out questions of an arm's own pools (HOMO) for the training ranks: prepared once, by one process, before they start.

In: the questions stage's file and the base model's probe. Out: a file of token ids for each domain (or the domains of arms that are
trained across them), and how often it is asked. The prompts are written by what the evaluate stage writes them with, so that live
knowledge and evaluation ask the same tokens.
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
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.job import ArmJob, LiveJob
from ift_scale.train.live import schedule
from ift_scale.train.live import tokens as live_tokens
from ift_scale.train.live.schedule import Schedule
from ift_scale.train.live.tokens import LiveSet

Jobs = dict[str, LiveJob]
"""By the arms' names."""

_NO_QUESTIONS = "its pool has no choice question in a test split"
_TOO_DEAR = (
    f"its arms are too short for {schedule.FEWEST_MEASUREMENTS} measurements of {schedule.FEWEST_QUESTIONS} questions under "
    f"{schedule.BUDGET:.0%} of their cost; set train.live.every to a number of steps to measure all the same"
)


@dataclass(frozen=True)
class Source:
    """Where the questions and the base model's answers to them are: the finished questions stage, and probe.parquet."""

    questions: QuestionFile
    probe: Path


def is_homo(domains: Sequence[str], group: GroupKey) -> bool:
    """True for the choice questions of the held-out tests of the domains' own pools."""
    is_tested = group.kind == "choice" and group.split == "test"
    return is_tested and test_group(domains, group.domain, group.collection, group.group) == "HOMO"


def in_order(questions: Sequence[Question]) -> list[Question]:
    """The order in which questions are taken where not all are asked: by their ids' checksums, so the same in every run."""
    return sorted(
        questions, key=lambda question: (zlib.crc32(f"live/{question.id}".encode()), question.id)
    )


def base_answers(probe: Path, domains: Sequence[str]) -> dict[str, tuple[list[float], str | None]]:
    """(option probabilities, grade) of each held-out question in the base model's probe."""
    where = [
        ("kind", "=", "choice"),
        ("collection", "=", "pool"),
        ("split", "=", "test"),
        ("domain", "in", list(domains)),
    ]
    table = pq.read_table(probe, columns=["question_id", "probs", "grade"], filters=where)
    return {row["question_id"]: (row["probs"], row["grade"]) for row in table.to_pylist()}


def prepare(
    source: Source,
    domains: Sequence[str],
    tokenizer: PromptTokenizer,
    template: str,
    response: str = "letter_text",
) -> LiveSet | None:
    """The domains' held-out questions; None where they have none. `response` as in ConstructConfig."""
    questions = in_order(source.questions.read(source.questions.select(partial(is_homo, domains))))
    if not questions:
        return None
    written = LetterAsker(Chat(tokenizer, template, response), plain).write(questions)
    assert (written.source[:, 0] == np.arange(len(questions))).all()  # one view each
    answers = [question.answer for question in questions]
    assert None not in answers
    num_choices = [len(question.choices) for question in questions]
    prompts = [
        _prompts(request, answer or 0, max(num_choices))
        for request, answer in zip(written.requests, answers, strict=True)
    ]
    flat = [prompt for found in prompts for prompt in found]
    known = base_answers(source.probe, domains)
    found = [known[question.id] for question in questions]
    return LiveSet(
        _tokens(flat),
        questions_N=np.repeat(np.arange(len(questions)), list(map(len, prompts))),
        letters_PC=np.concatenate([prompt.letters_PC for prompt in flat]),
        num_choices_Q=np.array(num_choices),
        answers_Q=np.array(answers, dtype=np.int64),
        base_QC=_table([probs for probs, _ in found], 0.0),
        grades_Q=np.array([-1 if grade is None else GRADES.index(grade) for _, grade in found]),  # type: ignore[arg-type]
        ids_Q=np.array([question.id for question in questions]),
    )


class _Prompt(NamedTuple):
    """A prompt's `ids`, the last of which are scored: by `letters_PC`, a row for each, in which options."""

    ids: list[int]
    letters_PC: np.ndarray


def _prompts(request: OptionRequest, answer: int, width: int) -> list[_Prompt]:
    """One prompt if every letter is one token, else one for each option."""
    count = len(request.options)
    if isinstance(request, ScoreRequest):
        letters_PC = np.full((1, width), -1)
        letters_PC[0, :count] = request.options
        return [_Prompt([*request.prompt, request.options[answer]], letters_PC)]
    found = []
    for number, option in enumerate(request.options):
        letters_PC = np.full((len(option), width), -1)
        letters_PC[:, number] = option
        found.append(_Prompt(request.prompt + option, letters_PC))
    return found


def _tokens(prompts: Sequence[_Prompt]) -> TokenizedSet:
    """The prompts end to end, the scored tokens supervised."""
    offsets = np.cumsum([0, *(len(prompt.ids) for prompt in prompts)])
    supervised = np.zeros(offsets[-1], dtype=bool)
    for end, prompt in zip(offsets[1:], prompts, strict=True):
        supervised[end - len(prompt.letters_PC) : end] = True
    ids = np.array([token for prompt in prompts for token in prompt.ids], dtype=np.int32)
    return TokenizedSet(ids, supervised, offsets, np.ones(len(prompts)), num_truncated=0)


def _table(rows: Sequence[Sequence[float]], fill: float) -> np.ndarray:
    """Rows of unlike lengths as one array, float64."""
    table = np.full((len(rows), max(map(len, rows))), fill)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def prepared(
    source: Source,
    domains: Sequence[str],
    tokenizer: PromptTokenizer,
    template: str,
    cache: Path,
    response: str = "letter_text",
) -> Path | None:
    """The domains' file of questions, made where these questions, probe, tokenizer and template have none yet; None without any."""
    made_of = [
        *map(file_digest, (source.questions.path, source.probe)),
        dataset.tokenizer_digest(tokenizer),
    ]
    path = (
        cache
        / f"live-{digest_of([live_tokens.FORMAT, made_of, template, response, domains])[:16]}.npz"
    )
    if not path.is_file():
        questions = prepare(source, domains, tokenizer, template, response)
        if questions is None:
            return None
        live_tokens.save(questions, path)
    return path


def schedule_of(
    questions: LiveSet, tokens: TokenizedSet, config: Config, hidden_size: int
) -> Schedule | None:
    """When an arm is asked and how much; None where `auto` finds no schedule within its budget.

    A function of the arm alone, since early stopping makes it part of what is learnt: not of what else is trained beside it.
    """
    train = config.train
    costs_N = packing.cost(questions.tokens.computed_lengths, hidden_size)
    costs_Q = questions.costs(costs_N)[: train.live.max_questions]
    arm_cost = train.epochs * packing.cost(tokens.computed_lengths, hidden_size).sum()
    num_steps = train.epochs * packing.steps_per_epoch(len(tokens.lengths), train.global_batch_size)
    if train.live.every == "auto":
        return schedule.automatic(costs_Q, arm_cost, num_steps)
    return schedule.fixed(train.live.every, costs_Q, arm_cost, num_steps)


def jobs(
    source: Source,
    arms: Sequence[ArmJob],
    config: Config,
    tokenizer: PromptTokenizer,
    cache: Path,
    hidden_size: int,
) -> Jobs:
    """What each arm is asked; one that is not asked is left out. Says so, a line for arms of a domain that are asked alike.

    ConfigError where early stopping is wanted and there is nothing that it could go by.
    """
    found: Jobs = {}
    said: dict[str, None] = {}
    files: dict[str, Path | None] = {}
    for work in arms:
        domain = work.arm.domain
        if domain not in files:
            asked = config.evaluate.template, cache, config.construct.response
            files[domain] = prepared(source, work.arm.own_domains, tokenizer, *asked)
        path = files[domain]
        questions = live_tokens.load(path) if path else None
        schedule = (
            schedule_of(questions, dataset.load(Path(work.tokens)), config, hidden_size)
            if questions
            else None
        )
        if schedule is None or questions is None:
            reason = _TOO_DEAR if questions else _NO_QUESTIONS
            if config.train.live.early_stopping is not None:
                raise ConfigError(
                    "settings",
                    [
                        f"train.live.early_stopping: there is no live knowledge of {domain}: {reason}"
                    ],
                )
            said[f"train: no live knowledge of {domain}: {reason}"] = None
        else:
            found[work.arm.name] = LiveJob(
                questions=str(path), num_questions=schedule.num_questions, every=schedule.every
            )
            said[f"train: live knowledge of {domain}: {told(schedule, len(questions.ids_Q))}"] = (
                None
            )
    for line in said:
        say(line)
    return found


def told(schedule: Schedule, num_there: int) -> str:
    """A schedule in words, with what it leaves out."""
    few = schedule.num_questions < num_there
    asked = f"{schedule.num_questions} of {num_there} questions, as more are too dear or over train.live.max_questions,"
    asked = asked if few else f"{num_there} questions"
    return f"{asked} every {schedule.every} steps, for about {schedule.share:.0%} of an arm's FLOPs"
