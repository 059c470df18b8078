"""Selects the questions that a domain's probes are fitted on and applied to.

The states of a question that an arm was trained on show what the arm was taught to answer, also if
that is wrong. Probes are therefore fitted on train questions that are in no set of the domain's
arms, and the base model's probes on the same ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic_core import from_json

from ift_scale import draws
from ift_scale.config.hidden import HiddenConfig
from ift_scale.errors import DataError, Place
from ift_scale.records import Arm
from ift_scale.scoring.question_file import GroupKey, QuestionFile

FEWEST_PER_OPTION, FEWEST_TEST = 20, 10


class ProbedQuestions(NamedTuple):
    """Rows of the question file: `fit_rows` in random order, `test_rows` in the file's."""

    fit_rows: np.ndarray
    test_rows: np.ndarray


def trained_ids(paths: Iterable[Path]) -> set[str]:
    """Returns the ids of the questions in instruction sets; general instructions have none."""
    found: set[str] = set()
    for path in paths:
        with path.open("rb") as file:
            found.update(id for line in file if (id := from_json(line)["meta"].get("question_id")))
    return found


def select(
    questions: QuestionFile,
    arms: Sequence[Arm],
    sets: Mapping[str, Sequence[Path]],
    config: HiddenConfig,
) -> dict[str, ProbedQuestions]:
    """Returns the questions of each domain that arms were trained on.

    `sets`: the instruction sets of each domain's arms. Raises DataError if a domain has too few.
    """
    pool = questions.select(lambda group: _is_pool(group, "train"))
    row_of, domain_of = {}, {}
    for row, question in zip(pool.tolist(), questions.read(pool), strict=True):
        row_of[question.id], domain_of[question.id] = row, question.domain
    return {
        arm.domain: _of_domain(questions, arm, row_of, domain_of, sets[arm.domain], config)
        for arm in {arm.domain: arm for arm in arms}.values()
    }


def _of_domain(
    questions: QuestionFile,
    arm: Arm,
    row_of: Mapping[str, int],
    domain_of: Mapping[str, str],
    sets: Sequence[Path],
    config: HiddenConfig,
) -> ProbedQuestions:
    used = trained_ids(sets)
    key = f"hidden/{config.seed}"
    left = draws.shuffled((id for id in row_of if id not in used), key)
    left.sort(key=lambda id: domain_of[id] not in arm.own_domains)  # stable: still in random order
    chosen = draws.shuffled(left[: config.max_fit_questions], f"{key}/fit")
    fit_rows = np.array([row_of[id] for id in chosen], dtype=np.int64)
    test_rows = questions.select(
        lambda group: _is_pool(group, "test") and group.domain in arm.own_domains
    )
    most = max((g.num_choices for g in questions.groups if _is_pool(g, "train")), default=0)
    needed = FEWEST_PER_OPTION * most
    if len(fit_rows) < needed or not needed:
        problem = f"{len(fit_rows)} train questions to fit a probe on, at least {needed} are needed"
        problem += f" ({FEWEST_PER_OPTION} per option). The pools have {len(row_of)}, of which"
        problem += f" {len(used & row_of.keys())} are in sets of this domain"
        remedy = "Lower construct.size, raise hidden.max_fit_questions, add a pool, or set"
        raise DataError(Place(f"hidden: {arm.domain}"), problem, f"{remedy} hidden.on to false")
    if len(test_rows) < FEWEST_TEST:
        problem = f"{len(test_rows)} test questions in the pool to apply a probe to, at least"
        problem += f" {FEWEST_TEST} are needed"
        remedy = "Add test questions to the domain's pool, or set hidden.on to false"
        raise DataError(Place(f"hidden: {arm.domain}"), problem, remedy)
    return ProbedQuestions(fit_rows, test_rows)


def _is_pool(group: GroupKey, split: str) -> bool:
    return (group.collection, group.split, group.kind) == ("pool", split, "choice")
