"""The variants in which a question is asked."""

import pytest

from ift_scale.config import ReliabilityConfig
from ift_scale.prompts import views
from ift_scale.prompts.views import View
from ift_scale.records import Question


def _question(id: str = "q0", num_choices: int = 4) -> Question:
    settings = {
        "domain": "d",
        "subject": "d",
        "collection": "pool",
        "split": "test",
        "question": "?",
        "answer": 0,
    }
    return Question(id=id, choices=[f"c{i}" for i in range(num_choices)], **settings)  # type: ignore[arg-type]


def test_by_default_a_question_is_asked_once_unchanged() -> None:
    assert views.views_of(ReliabilityConfig())(_question()) == (View(0, (0, 1, 2, 3)),)


@pytest.mark.parametrize("num_choices", [2, 4, 5, 26])
def test_rotations_show_every_content_at_every_letter_once(num_choices: int) -> None:
    orders = views.circular(num_choices)
    assert orders[0] == tuple(range(num_choices))
    for letter in range(num_choices):
        assert sorted(order[letter] for order in orders) == list(range(num_choices))


def test_sampled_orders_are_distinct_begin_with_the_plain_one_and_are_the_questions_own() -> None:
    orders = views.sampled("q0", 4, 6, seed=1)
    assert len(set(orders)) == 6 and orders[0] == (0, 1, 2, 3)
    assert orders == views.sampled("q0", 4, 6, seed=1) != views.sampled("q1", 4, 6, seed=1)
    assert set(views.sampled("q0", 2, 6, seed=1)) == {(0, 1), (1, 0)}  # there are no more


def test_all_draws_meet_all_orders() -> None:
    config = ReliabilityConfig(demonstration_draws=3, permutations="circular")
    found = views.views_of(config)(_question())
    assert found[0] == View(0, (0, 1, 2, 3))
    assert {(view.draw, view.order) for view in found} == {
        (d, o) for d in range(3) for o in views.circular(4)
    }
    assert len(found) == 12


def test_the_priors_sample_is_a_share_of_any_pool_and_gets_every_rotation_once() -> None:
    config = ReliabilityConfig(prior_share=0.2, permutations="sampled", num_permutations=3)
    ids = [f"q{i}" for i in range(2000)]
    chosen = [id for id in ids if views.in_prior_sample(id, 0.2, config.seed)]
    assert 0.17 < len(chosen) / len(ids) < 0.23
    for id in chosen[:20]:
        orders = [view.order for view in views.views_of(config)(_question(id))]
        assert len(orders) == len(set(orders)) and set(views.circular(4)) <= set(orders)
    other = next(id for id in ids if id not in chosen)
    assert len(views.views_of(config)(_question(other))) == 3
