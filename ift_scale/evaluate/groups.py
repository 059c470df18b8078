"""Selects the questions that an arm is evaluated on."""

from ift_scale.records import Arm
from ift_scale.scoring.question_file import GroupKey


def is_asked(arm: Arm, generate: bool, group: GroupKey) -> bool:
    """True if an arm is evaluated on this group's questions.

    These are the choice questions in the test splits of its test groups and, if answers are
    generated, the free questions too.
    """
    is_evaluated = group.split == "test" and (group.kind == "choice" or generate)
    return is_evaluated and arm.test_group(group.domain, group.collection, group.group) is not None


def is_asked_by_kind(arm: Arm, generate: bool, kind: str, group: GroupKey) -> bool:
    return group.kind == kind and is_asked(arm, generate, group)
