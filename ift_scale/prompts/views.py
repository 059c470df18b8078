"""Views: the ways in which one question is asked, by demonstrations and by the order of its options.

The first view is the plain one (the paper's). More views tell what the model knows from what it does by habit: a content that wins
under every order of the options is known, a letter that wins under every order is a bias.
"""

import math
import random
import zlib
from collections.abc import Callable
from typing import NamedTuple

from ift_scale.config import ReliabilityConfig
from ift_scale.records import Question


class View(NamedTuple):
    """`draw` numbers the demonstrations; `order[i]` is the option shown as letter i."""

    draw: int
    order: tuple[int, ...]


ViewsOf = Callable[[Question], tuple[View, ...]]


def plain(question: Question) -> tuple[View, ...]:
    """One view: the first demonstrations, the options as they stand."""
    return (View(0, tuple(range(len(question.choices)))),)


def circular(num_choices: int) -> list[tuple[int, ...]]:
    """Every rotation, the options as they stand first: each content meets each letter once."""
    return [
        tuple((shift + i) % num_choices for i in range(num_choices)) for shift in range(num_choices)
    ]


def sampled(question_id: str, num_choices: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """The options as they stand, then up to `count` - 1 other orders, drawn for each question."""
    rng = random.Random(f"order/{seed}/{question_id}")
    found = [tuple(range(num_choices))]
    for _ in range(20 * count):
        if len(found) == count:
            break
        order = tuple(rng.sample(range(num_choices), num_choices))
        if order not in found:
            found.append(order)
    return found


def in_prior_sample(question_id: str, share: float, seed: int) -> bool:
    """Whether the letters' prior is estimated on this question: a share of any pool, the same whatever else is in it."""
    return zlib.crc32(f"prior/{seed}/{question_id}".encode()) < share * 2**32


def num_configured(config: ReliabilityConfig, num_choices: int) -> int:
    """Views that every question has: those of the prior's sample have their rotations behind these."""
    orders = {
        "none": 1,
        "circular": num_choices,
        "sampled": min(config.num_permutations, math.factorial(num_choices)),
    }
    return config.demonstration_draws * orders[config.permutations]


def views_of(config: ReliabilityConfig) -> ViewsOf:
    """Each question's views: all draws with all orders; rotations besides for the questions of the prior's sample."""
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
        found = [
            View(draw, order) for draw in range(config.demonstration_draws) for order in orders
        ]
        if config.permutations != "circular" and in_prior_sample(
            question.id, config.prior_share, config.seed
        ):
            found += [
                view for order in circular(num_choices) if (view := View(0, order)) not in found
            ]
        return tuple(found)

    return views
