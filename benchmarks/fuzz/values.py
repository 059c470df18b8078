"""Values to put in place of valid ones: drawn by hypothesis, or known to be awkward."""

import warnings
from functools import lru_cache
from typing import Any

from benchmarks.fuzz.case import Random

DEEP = 3000
"""Levels of a deeply nested value."""
WORDS = ("", " ", "0", "-1", "NaN", "null", "~", "true", "1:30", "010", "=1+1", "../../x", "a/b")
TEXTS = (
    "\x00",
    "a\x00b",
    "\ufeff",
    "\u202e",
    "e\u0301",
    "\U0001f600",
    "\x1b[31m",
    "x" * 300,
    "x" * 5000,
    "/dev/zero",
    "{{ 1/0 }}",
    "A\nB",
    "\r",
)
NUMBERS = (0, -1, 1, 2, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-320)
ODD: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"a": None}, [1, "a"], {"": ""})


@lru_cache(maxsize=1)
def drawn(count: int = 400) -> tuple[Any, ...]:
    """Returns JSON values that hypothesis draws, always the same."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
    nested = st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=8,
    )
    found: list[Any] = []

    @seed(0)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(nested)
    def collect(value: Any) -> None:
        found.append(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collect()
    return tuple(found)


def any_value(random: Random) -> Any:
    """Returns a JSON value to put in another's place."""
    group = random.choice((WORDS, TEXTS, NUMBERS, ODD, drawn(), drawn()))
    return random.choice(group)


def like(random: Random, value: Any) -> Any:
    """Returns a value that resembles `value` but has another type or an extreme size."""
    if isinstance(value, bool):
        return random.choice((int(value), str(value), None, [value]))
    if isinstance(value, int):
        return random.choice(
            (str(value), float(value), bool(value), -value, value + 10**9, value + 1, [value])
        )
    if isinstance(value, float):
        return random.choice((str(value), -value, int(value), value * 1e300, float("nan")))
    if isinstance(value, str):
        return random.choice(
            (value + " ", value.upper(), value * 2, [value], {"text": value}, len(value), "")
        )
    if isinstance(value, list):
        return random.choice(([*value, *value], value[:-1], value[1:], dict.fromkeys("ab", value)))
    if isinstance(value, dict):
        return random.choice((list(value.items()), list(value.values()), {**value, "extra": 1}))
    return any_value(random)
