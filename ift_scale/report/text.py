"""Numbers, intervals and names as the text of a report: plain strings, no HTML."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ift_scale.report.coverage import over
from ift_scale.treatments import treatment

NONE = "–"
Row = Mapping[str, Any]


def absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def number(value: Any, digits: int = 2, sign: bool = False) -> str:
    """With a true minus; a dash where there is no value, the sign for infinity where it has no end."""
    if absent(value) or pd.isna(value):
        return NONE
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "−∞"
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if not any(c in "123456789" for c in text):
        text = text.lstrip("+-")  # a zero has no sign
    return text.replace("-", "−")


def points(value: Any, sign: bool = False) -> str:
    """A share in percent, or a difference of shares in percentage points, without the unit."""
    return number(None if absent(value) else float(value) * 100, 1, sign)


def interval(
    row: Row, name: str, share: bool = True, sign: bool = False, ends: tuple[str, str] | None = None
) -> str:
    """`55.7 [50.9, 60.5]`: NAME, NAME_low and NAME_high of a row, the limits where there are any.

    `over 3 of 4 domains` follows where it is over fewer domains than the run has.
    """
    low, high = (row.get(end) for end in (ends or (f"{name}_low", f"{name}_high")))

    def show(value: Any) -> str:
        return points(value, sign) if share else number(value, 3, sign)

    if absent(row.get(name)):
        return NONE
    # Where a column is narrow, the interval goes below its estimate as a whole.
    ends_told = "" if absent(low) or absent(high) else f"[{show(low)},\u00a0{show(high)}]"
    return " ".join(filter(None, [show(row[name]), ends_told, over(row, name)]))


def points_over(row: Row, name: str) -> str:
    """`points` of a row's NAME, and over which domains it is where they are not all of the run's."""
    return " ".join(filter(None, [points(row[name]), "" if absent(row[name]) else over(row, name)]))


def p_value(value: Any) -> str:
    return NONE if absent(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def why(found: pd.DataFrame, otherwise: str) -> str:
    """The reasons that a table's rows give for what they lack."""
    reasons = dict.fromkeys(
        part for text in found.reason.dropna() for part in str(text).split("; ") if part
    )
    return f"{'; '.join(reasons)}." if reasons else otherwise


def name_of(setting: str) -> str:
    """A setting as tables and legends call it; a mixture by its short name only, which tells its ratio."""
    found = treatment(setting)
    if found.ratio is not None or found.short == found.label:
        return found.short
    return (
        f"{found.label} ({found.short})" if " " in found.short else f"{found.short} {found.label}"
    )


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(names: Sequence[str]) -> str:
    return (
        names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
    )
