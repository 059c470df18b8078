"""Numbers, intervals and names as the report's text: plain strings, no HTML."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ift_scale.report.coverage import over
from ift_scale.treatments import treatment

NONE = "–"
Row = Mapping[str, Any]


def absent(value: Any) -> bool:
    """True for None and NaN."""
    return value is None or (isinstance(value, float) and value != value)


def number(value: Any, digits: int = 2, sign: bool = False) -> str:
    """Formats a number with a true minus sign; a dash if missing, ∞ if infinite."""
    if absent(value) or pd.isna(value):
        return NONE
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "−∞"
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if not any(c in "123456789" for c in text):
        text = text.lstrip("+-")  # a zero has no sign
    return text.replace("-", "−")


def points(value: Any, sign: bool = False) -> str:
    """Formats a share in percent, or a difference in percentage points, without the unit."""
    return number(None if absent(value) else float(value) * 100, 1, sign)


def interval(
    row: Row, name: str, share: bool = True, sign: bool = False, ends: tuple[str, str] | None = None
) -> str:
    """Formats an estimate and its limits as `55.7 [50.9, 60.5]`, from NAME, NAME_low, NAME_high.

    `over 3 of 4 domains` is appended if the number is over fewer domains than the run has.
    """
    low, high = (row.get(end) for end in (ends or (f"{name}_low", f"{name}_high")))

    def show(value: Any) -> str:
        return points(value, sign) if share else number(value, 3, sign)

    if absent(row.get(name)):
        return NONE
    # In a narrow column the interval breaks as a whole.
    limits = "" if absent(low) or absent(high) else f"[{show(low)},\u00a0{show(high)}]"
    return " ".join(filter(None, [show(row[name]), limits, over(row, name)]))


def points_over(row: Row, name: str) -> str:
    """Formats a row's NAME by `points`, with its domains if they are not all of the run's."""
    return " ".join(filter(None, [points(row[name]), "" if absent(row[name]) else over(row, name)]))


def p_value(value: Any) -> str:
    return NONE if absent(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def reasons_of(frame: pd.DataFrame, otherwise: str) -> str:
    """Returns the distinct reasons of a table's rows as text, or `otherwise`."""
    reasons = dict.fromkeys(
        part for text in frame.reason.dropna() for part in str(text).split("; ") if part
    )
    return f"{'; '.join(reasons)}." if reasons else otherwise


def setting_name(setting: str) -> str:
    """Returns a setting's name for tables and legends; mixtures have only their short name."""
    frame = treatment(setting)
    if frame.ratio is not None or frame.short == frame.label:
        return frame.short
    return (
        f"{frame.label} ({frame.short})" if " " in frame.short else f"{frame.short} {frame.label}"
    )


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(names: Sequence[str]) -> str:
    return (
        names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
    )
