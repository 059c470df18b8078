"""Which questions the probe asks, in which order, and whether there is what asking them needs."""

from functools import partial

import numpy as np

from ift_scale import draws
from ift_scale.config import ProbeConfig
from ift_scale.errors import DataError, Place
from ift_scale.prompts import views
from ift_scale.prompts.templates import Demonstrations
from ift_scale.scoring.question_file import GroupKey, QuestionFile

_ROWS_AT_ONCE = 1000


def wanted(config: ProbeConfig, group: GroupKey) -> bool:
    """Whether questions of this group are asked: all but demonstrations, free ones by setting."""
    return group.split != "dev" and (group.kind == "choice" or config.free.ask)


def wanted_of_kind(config: ProbeConfig, kind: str, group: GroupKey) -> bool:
    return group.kind == kind and wanted(config, group)


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


def check_topics(
    questions: QuestionFile, demonstrations: Demonstrations, config: ProbeConfig
) -> None:
    """DataError for a topic without enough demonstrations, before anything starts."""
    for group, row in zip(questions.groups, questions.first_rows, strict=True):
        if wanted(config, group):
            demonstrations.of(questions.read(np.array([row]))[0])
