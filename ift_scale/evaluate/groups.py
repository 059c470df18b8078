"""Which questions an arm is asked."""

from ift_scale.records import Arm
from ift_scale.scoring.question_file import GroupKey


def asked_of(arm: Arm, generate: bool, group: GroupKey) -> bool:
    """Whether an arm is asked this group's questions: the choice questions of the test splits of one of its test groups, and where
    answers are generated, the free ones too."""
    is_asked = group.split == "test" and (group.kind == "choice" or generate)
    return is_asked and arm.test_group(group.domain, group.collection, group.group) is not None


def asked_of_kind(arm: Arm, generate: bool, kind: str, group: GroupKey) -> bool:
    return group.kind == kind and asked_of(arm, generate, group)
