from ift_scale.evaluate.run import asked_of, group_of
from ift_scale.inference.question_file import GroupKey
from ift_scale.questions import world
from ift_scale.records import Arm


def test_groups_are_the_papers() -> None:
    assert group_of("medicine", "pool", "medicine") == "HOMO"
    assert group_of("history", "pool", "medicine") is None
    assert group_of("medicine", "benchmark", "medicine") == "ID"
    assert group_of("other", "benchmark", "medicine") == "OOD"


def test_an_arm_is_asked_its_own_pools_test_and_all_of_the_benchmark() -> None:
    arm = Arm(domain="history", setting="harmonious", seed=0)
    asked = [q for q in world.load() if asked_of(arm, GroupKey.of(q))]
    assert all(q.kind == "choice" and q.split == "test" for q in asked)
    assert sum(q.collection == "pool" for q in asked) == 100 and sum(q.collection == "benchmark" for q in asked) == 240
