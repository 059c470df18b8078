"""Matched sets differ in nothing that is matched, and are as large as that allows."""

from collections import Counter

import pytest

from ift_scale.config import ConstructConfig, MatchingConfig
from ift_scale.construct import balance, domain
from ift_scale.construct.balanced_choice import Program, Traits
from ift_scale.construct.even_letters import common_profile, even_letters, swapped
from ift_scale.errors import DataError
from ift_scale.records import Question, Score

PAPER = ["harmonious", "incompatible", "self_aligning"]
Domain = tuple[dict[str, Question], dict[str, Score]]


def _loaded(made: Domain, **settings: object) -> domain.Domain:
    config = ConstructConfig.model_validate({"settings": PAPER} | settings)
    return domain.load("d", config, list(made[0].values()), made[1], {})


def _covariates(
    loaded: domain.Domain, seed: int = 0, matched: bool = True
) -> dict[str, balance.Covariates]:
    found = {}
    for setting in PAPER:
        chosen = (
            loaded.set_of(setting, seed, loaded.size)
            if matched
            else loaded.unmatched(setting, seed, loaded.size)
        )
        found[setting] = loaded.covariates(
            setting, chosen, loaded.examples(setting, chosen, {}), "paper"
        )
    return found


def test_the_largest_sets_with_equal_letters_are_found() -> None:
    """Known wrong: 3 of A for B, 2 of B for A, 4 of C for D.

    A cycle needs both directions, so the largest set has 2 + 2; known right has enough of each.
    """
    wrong = {
        f"w{i}": Traits((pair,))
        for i, pair in enumerate([(0, 1)] * 3 + [(1, 0)] * 2 + [(2, 3)] * 4)
    }
    right = {f"r{i}": Traits(((i % 2, i % 2),)) for i in range(10)}
    program = Program(right, wrong)
    assert program.largest(100) == 4 and program.largest(3) == 2
    chosen = program.choose(4, "seed")
    assert Counter(wrong[id].levels[0] for id in chosen.wrong) == {(0, 1): 2, (1, 0): 2}
    assert Counter(right[id].levels[0][0] for id in chosen.right) == {0: 2, 1: 2}
    assert program.choose(4, "seed") == chosen and Program({}, wrong).largest(5) == 0


@pytest.mark.parametrize("covariate", ["letters", "confidence", "length"])
def test_selection_makes_a_covariate_equal(domain: Domain, covariate: str) -> None:
    loaded = _loaded(domain, matching={covariate: "selection", "bins": 10})
    assert loaded.size >= 20
    name = covariate.removesuffix("s")
    for seed in (0, 1):
        before, after = (_covariates(loaded, seed, matched) for matched in (False, True))
        for setting in ("harmonious", "self_aligning"):
            far, near = (
                abs(balance.distances(c[setting], c["incompatible"])[name]) for c in (before, after)
            )
            if covariate == "letters":
                assert near == 0
            else:  # equal within bins, and where the two hold the same questions, equal before
                assert near < max(0.25, far / 2)


def test_all_covariates_at_once_and_the_same_questions_in_i_and_s(domain: Domain) -> None:
    loaded = _loaded(
        domain,
        matching={
            "letters": "selection",
            "confidence": "selection",
            "length": "selection",
            "bins": 3,
        },
    )
    ids = {s: [item.question_id for item in loaded.set_of(s, 0, loaded.size)] for s in PAPER}
    assert ids["incompatible"] == ids["self_aligning"] and not set(ids["harmonious"]) & set(
        ids["incompatible"]
    )
    assert len(set(ids["harmonious"])) == loaded.size
    found = _covariates(loaded)
    assert balance.distances(found["self_aligning"], found["incompatible"])["letter"] == 0
    assert balance.distances(found["harmonious"], found["incompatible"])["letter"] == 0


def test_an_impossible_match_says_how_far_it_got(domain: Domain) -> None:
    with pytest.raises(DataError) as error:
        _loaded(domain, size=120, matching={"letters": "selection"})
    assert "matched by letters can have" in str(
        error.value
    ) and "letters by level: known right {0:" in str(error.value)


def test_reordering_gives_every_setting_the_same_letters() -> None:
    counts = {f"q{number}": 4 if number < 10 else 3 for number in range(13)}
    letters = even_letters(counts, common_profile([counts.values()]), "seed")
    assert Counter(letters[id] for id in counts if counts[id] == 4) == {0: 3, 1: 3, 2: 2, 3: 2}
    assert Counter(letters[id] for id in counts if counts[id] == 3) == {0: 1, 1: 1, 2: 1}
    backwards = dict(reversed(counts.items()))
    assert even_letters(backwards, common_profile([counts.values()]), "seed") == letters
    assert even_letters(counts, common_profile([counts.values()]), "other") != letters
    assert swapped(4, 3, 1) == [0, 3, 2, 1] and swapped(4, 2, 2) == [0, 1, 2, 3]


def test_distances() -> None:
    assert balance.total_variation("AAB", "ABB") == pytest.approx(1 / 3)
    assert balance.standardized_difference([1, 3], [3, 5]) == -2
    assert balance.standardized_difference([1, 1], [1, 1]) == 0
    assert balance.standardized_difference([2, 2], [1, 1]) == float("inf")
    assert (
        MatchingConfig(length="selection").by_selection
        and not MatchingConfig(letters="reorder").by_selection
    )
