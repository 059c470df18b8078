"""Selects and orders the questions that the probe asks, and checks that they can be asked."""

from functools import partial

import numpy as np

from ift_scale import draws
from ift_scale.config.engines import ProbeConfig
from ift_scale.errors import DataError, Place
from ift_scale.prompts import views
from ift_scale.prompts.templates import Demonstrations
from ift_scale.scoring.question_file import GroupKey, QuestionFile

_ROWS_AT_ONCE = 1000


def is_probed(config: ProbeConfig, group: GroupKey) -> bool:
    """True if the group's questions are asked: no demonstrations; free ones if configured."""
    return group.split != "dev" and (group.kind == "choice" or config.free.ask)


def is_probed_of_kind(config: ProbeConfig, kind: str, group: GroupKey) -> bool:
    return group.kind == kind and is_probed(config, group)


def shuffled_by_topic(questions: QuestionFile, rows: np.ndarray, seed: int) -> np.ndarray:
    """Returns the rows topic by topic and, within a topic, ordered by a hash of the id.

    An engine samples the answers of a chunk from one random stream, so chunks must not follow the
    order of a file.
    """
    ranks, topics = np.empty(len(rows), dtype=np.uint64), np.empty(len(rows), dtype=np.int32)
    numbers: dict[tuple[str, str], int] = {}
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        for position, question in enumerate(
            questions.read(rows[start : start + _ROWS_AT_ONCE]), start=start
        ):
            ranks[position] = draws.rank(f"free/{seed}", question.id)
            topics[position] = numbers.setdefault(
                (question.collection, question.topic), len(numbers)
            )
    order: np.ndarray = rows[np.lexsort((ranks, topics))]
    return order


def check_prior_sample(questions: QuestionFile, config: ProbeConfig) -> None:
    """Raises DataError if the letter prior's sample has no question of some option count."""
    share, seed = config.reliability.prior_share, config.reliability.seed
    counts = {
        g.num_choices for g in questions.groups if g.kind == "choice" and is_probed(config, g)
    }
    for num_choices in sorted(counts) if config.reliability.permutations != "circular" else ():
        rows = questions.select(partial(_with_choices, config, num_choices))
        if not any(
            views.in_prior_sample(questions.read(row[None])[0].id, share, seed) for row in rows
        ):
            raise DataError(
                Place("probe.reliability.prior_share"),
                f"none of the {len(rows)} questions with {num_choices} options is in the prior's"
                " sample",
                "Raise it so that questions of every option count are sampled",
                share,
            )


def _with_choices(config: ProbeConfig, num_choices: int, group: GroupKey) -> bool:
    return group.kind == "choice" and group.num_choices == num_choices and is_probed(config, group)


def check_topics(
    questions: QuestionFile, demonstrations: Demonstrations, config: ProbeConfig
) -> None:
    """Raises DataError for a topic without enough demonstrations."""
    for group, row in zip(questions.groups, questions.first_rows, strict=True):
        if is_probed(config, group):
            demonstrations.of(questions.read(np.array([row]))[0])
