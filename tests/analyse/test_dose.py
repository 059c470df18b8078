"""dose.csv: acquired and forgotten against the base model, and against the whole dose."""

import pandas as pd
import pytest

from ift_scale.analyse.answers import Answers, ArmScores, answers_of, table_of
from ift_scale.analyse.dose import dose_table
from ift_scale.analyse.format_content import parts_of
from ift_scale.analyse.panel import panels_of
from ift_scale.records import Arm, Score
from tests.analyse.scores import choices, panels

NUM = 40


def _share(right: int, prefix: str) -> list[Score]:
    """The first `right` of 40 questions are answered rightly."""
    return choices([i < right for i in range(NUM)], prefix)


def _arm(setting: str, seed: int, own: int, others: int, domain: str = "d") -> ArmScores:
    groups = {"HOMO": table_of(_share(own, domain)), "OOD": table_of(_share(others, "o"))}
    return ArmScores(Arm(domain=domain, setting=setting, seed=seed), groups)


BASE = [*_share(20, "d"), *_share(10, "e"), *_share(30, "o")]


def _table(arms: list[ArmScores], base: list[Score] = BASE) -> pd.DataFrame:
    return dose_table(panels(arms, base), 0.95).set_index(["setting", "domain"])


def test_gain_in_the_own_domain_and_loss_in_others() -> None:
    arms = [_arm("harmonious", s, 32 + 2 * s, 24, d) for s in (0, 1) for d in "de"]
    arms += [_arm("harmonious-size-8-epoch-1", s, 28, 28, d) for s in (0, 1) for d in "de"]
    arms += [_arm("harmonious-size-8", s, 30, 27, d) for s in (0, 1) for d in "de"]
    table = _table(arms)
    whole = table.loc["harmonious", "d"]
    assert whole.acquired == pytest.approx((33 - 20) / NUM)
    assert whole.forgotten == pytest.approx(6 / NUM)
    assert whole.acquired_low < whole.acquired < whole.acquired_high
    assert pd.isna([whole.acquired_change, whole.kind, whole["size"]]).all()
    both = table.loc["harmonious", "all"]
    assert both.acquired == pytest.approx((33 - 15) / NUM) and both.domains == 2
    # A smaller set is compared with the whole one, an earlier epoch with the end of its own set.
    small = table.loc["harmonious-size-8", "d"]
    assert small["size"] == 8 and small.treatment == "harmonious"
    assert small.acquired_change == pytest.approx((30 - 33) / NUM)
    assert small.forgotten_change == pytest.approx((3 - 6) / NUM)
    early = table.loc["harmonious-size-8-epoch-1", "d"]
    assert (early.kind, early.amount, early["size"]) == ("epoch", 1, 8)
    assert early.acquired_change == pytest.approx((28 - 30) / NUM)
    assert early.forgotten_change == pytest.approx((2 - 3) / NUM)
    assert early.acquired_change_low < early.acquired_change < early.acquired_change_high


def test_the_base_model_is_0_shot_if_it_was_asked_so() -> None:
    arms, zero_shot = [_arm("natural", 0, 24, 24)], answers_of(table_of(_share(15, "d")))

    def parts(few_shot: Answers, after: Answers, *_: object) -> pd.DataFrame:
        return parts_of(few_shot, zero_shot.of(after.columns.index), after)

    found = dose_table(panels_of(arms, answers_of(table_of(BASE)), parts), 0.95).iloc[0]
    assert found.base == "0-shot" and found.acquired == pytest.approx((24 - 15) / NUM)
    assert pd.isna(found.forgotten), "not asked 0-shot"
    assert (_table(arms).base == "few-shot").all()


def test_what_was_not_asked_is_named() -> None:
    scores = {"HOMO": table_of(_share(24, "d"))}
    alone = ArmScores(Arm(domain="d", setting="natural", seed=0), scores)
    row = _table([alone]).loc["natural", "d"]
    assert row.acquired == pytest.approx(4 / NUM) and pd.isna(row.forgotten)
    assert row.reason == "forgotten: no arm was asked questions of the group OOD"
    row = _table([_arm("natural", 0, 24, 24)], _share(30, "o")).loc["natural", "d"]
    assert pd.isna(row.acquired) and row.forgotten == pytest.approx(6 / NUM)
    assert row.reason == "acquired: the base model was not asked questions of the group HOMO"
    other = ArmScores(Arm(domain="d", setting="natural", seed=0), {"ID": table_of(_share(9, "i"))})
    assert not len(_table([other]))
