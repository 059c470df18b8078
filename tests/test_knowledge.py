"""Warnings about sets that are smaller than an optimizer step."""

from ift_scale.knowledge import smaller_than_batch
from ift_scale.records import Arm


def test_sets_smaller_than_a_batch_are_reported_once_per_domain() -> None:
    sizes = {
        Arm(domain="law", setting=setting, seed=seed): 12
        for setting in ("unknown", "weakly_known")
        for seed in (0, 1)
    }
    sizes |= {Arm(domain="history", setting="unknown", seed=0): 256}
    reported = smaller_than_batch(sizes, 256)
    assert len(reported) == 1 and reported[0].startswith(
        "law: the sets of unknown, weakly_known have 12 examples, fewer than "
    )
    assert "train.global_batch_size = 256" in reported[0] and smaller_than_batch(sizes, 12) == []
