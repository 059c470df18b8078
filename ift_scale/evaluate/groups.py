"""Selects the questions that an arm is evaluated on."""

from collections.abc import Callable, Sequence

from ift_scale.records import Arm
from ift_scale.scoring.question_file import GroupKey

Selects = Callable[[GroupKey], bool]


def is_asked(arm: Arm, generate: bool, group: GroupKey) -> bool:
    """True if an arm is evaluated on this group's questions.

    These are the choice questions in the test splits of its test groups and, if answers are
    generated, the free questions too.
    """
    is_evaluated = group.split == "test" and (group.kind == "choice" or generate)
    return is_evaluated and arm.test_group(group.domain, group.collection, group.group) is not None


def asked_of(arms: Sequence[Arm], generate: bool, kind: str | None = None) -> Selects:
    """Returns the selection of the groups that any of `arms` is evaluated on, of one kind or all.

    The base model is asked what any arm is.
    """

    def selects(group: GroupKey) -> bool:
        is_kind = kind is None or group.kind == kind
        return is_kind and any(is_asked(arm, generate, group) for arm in arms)

    return selects
