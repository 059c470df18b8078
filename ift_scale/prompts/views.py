"""Views: the variants in which a question is asked, by demonstrations and by order of options.

The first view is the plain one (the paper's). More views separate knowledge from habit: an option
that wins in every order is known; a letter that wins in every order is a bias.
"""

import math
import random
import zlib
from collections.abc import Callable
from typing import NamedTuple

from ift_scale.config.engines import ReliabilityConfig
from ift_scale.records import Question


class View(NamedTuple):
    """`draw` numbers the demonstrations; `order[i]` is the option shown as letter i."""

    draw: int
    order: tuple[int, ...]


ViewsOf = Callable[[Question], tuple[View, ...]]


def plain(question: Question) -> tuple[View, ...]:
    """Returns one view: the first demonstrations, the options in their own order."""
    return (View(0, tuple(range(len(question.choices)))),)


def circular(num_choices: int) -> list[tuple[int, ...]]:
    """Returns all rotations, the original order first: each option meets each letter once."""
    return [
        tuple((shift + i) % num_choices for i in range(num_choices)) for shift in range(num_choices)
    ]


def sampled(question_id: str, num_choices: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """Returns the original order, then up to `count` - 1 other orders drawn for each question."""
    rng = random.Random(f"order/{seed}/{question_id}")
    orders = [tuple(range(num_choices))]
    for _ in range(20 * count):
        if len(orders) == count:
            break
        order = tuple(rng.sample(range(num_choices), num_choices))
        if order not in orders:
            orders.append(order)
    return orders


def in_prior_sample(question_id: str, share: float, seed: int) -> bool:
    """True if the letter prior is estimated on this question, independently of all others."""
    return zlib.crc32(f"prior/{seed}/{question_id}".encode()) < share * 2**32


def num_configured(config: ReliabilityConfig, num_choices: int) -> int:
    """Returns the number of views of every question, without the prior sample's rotations."""
    orders = {
        "none": 1,
        "circular": num_choices,
        "sampled": min(config.num_permutations, math.factorial(num_choices)),
    }
    return config.demonstration_draws * orders[config.permutations]


def views_of(config: ReliabilityConfig) -> ViewsOf:
    """Returns the function that lists a question's views.

    Views are all draws with all orders and, for the prior's sample, all rotations.
    """
    if (
        config.demonstration_draws == 1
        and config.permutations == "none"
        and config.prior_share == 0
    ):
        return plain

    def views(question: Question) -> tuple[View, ...]:
        num_choices = len(question.choices)
        orders = [tuple(range(num_choices))]
        if config.permutations == "circular":
            orders = circular(num_choices)
        elif config.permutations == "sampled":
            orders = sampled(question.id, num_choices, config.num_permutations, config.seed)
        views_found = [
            View(draw, order) for draw in range(config.demonstration_draws) for order in orders
        ]
        if config.permutations != "circular" and in_prior_sample(
            question.id, config.prior_share, config.seed
        ):
            views_found += [
                view
                for order in circular(num_choices)
                if (view := View(0, order)) not in views_found
            ]
        return tuple(views_found)

    return views
