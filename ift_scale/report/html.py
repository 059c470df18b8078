"""The page's parts: numbers as text, tables, figures. Whatever comes from the run is escaped; only our own marks are Markup."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from ift_scale.report import colors
from ift_scale.report.coverage import over
from ift_scale.treatments import treatment

NONE = "–"
PRINTED = 70
"""Rows of the longest folded table that is printed."""
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


def paragraph(text: str | Markup, kind: str = "") -> Markup:
    return (
        Markup('<p class="{}">{}</p>').format(kind, text)
        if kind
        else Markup("<p>{}</p>").format(text)
    )


def table(
    rows: Sequence[Row] | pd.DataFrame, caption: str, missing: str = "", heads: int = 1
) -> Markup:
    """A captioned table in a region that scrolls by itself where it is wide.

    The first `heads` columns name the row. `missing` says why a cell has no value; without one, such cells are not allowed.
    """
    rows = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # Words stand at the left, numbers at the right.
    kinds = {
        name: "words" if _of_words([row.get(name) for row in rows]) else "" for name in columns
    }
    body, gaps = [], False
    for row in rows:
        cells = []
        for place, name in enumerate(columns):
            value = NONE if absent(row.get(name)) else row[name]
            gaps |= isinstance(value, str) and NONE in value.split()
            cell = (
                '<th scope="row">{1}</th>'
                if place < heads
                else '<td class="{0}">{1}</td>'
                if kinds[name]
                else "<td>{1}</td>"
            )
            cells.append(Markup(cell).format(kinds[name], value))
        body.append(Markup("<tr>") + Markup("").join(cells) + Markup("</tr>"))
    assert missing or not gaps, f"{caption}: a cell is empty and nothing says why"
    head = Markup("").join(
        Markup('<th scope="col" class="{}">{}</th>').format(kinds[name], name) for name in columns
    )
    note = paragraph(f"{NONE} {missing}", "note") if gaps else Markup("")
    return Markup(
        '<div class="wide{}" tabindex="0" role="region" aria-label="{}"><table><caption><span>{}</span></caption>'
        "<thead><tr>{}</tr></thead>"
        "<tbody>{}</tbody></table></div>{}"
    ).format(
        " short" if len(rows) <= 20 else "", caption, caption, head, Markup("").join(body), note
    )


def why(found: pd.DataFrame, otherwise: str) -> str:
    """The reasons that a table's rows give for what they lack."""
    reasons = dict.fromkeys(
        part for text in found.reason.dropna() for part in str(text).split("; ") if part
    )
    return f"{'; '.join(reasons)}." if reasons else otherwise


def bare(found: pd.DataFrame, name: str) -> Markup:
    """A note that says why rows with a value of NAME have no interval; nothing where all have one."""
    without = found[found[name].notna() & found[f"{name}_low"].isna()]
    reasons = dict.fromkeys(
        part
        for text in without.reason.dropna()
        for part in str(text).split("; ")
        if "no interval" in part
    )
    return (
        paragraph(f"Values without brackets: {'; '.join(reasons)}.", "note")
        if reasons
        else Markup("")
    )


def _of_words(values: Sequence[Any]) -> bool:
    told = [value for value in values if not absent(value) and value != NONE]
    if not told or not all(isinstance(value, str) for value in told):
        return False
    return any(len(v) > 50 for v in told) or not any(
        v.lstrip("+−<[(∞").startswith(tuple("0123456789")) for v in told
    )


def folded(
    rows: Sequence[Row], caption: str, missing: str = "", heads: int = 1, most: int = 16
) -> Markup:
    """A table, folded where it has more than `most` rows; the longest are not printed, they are beside the page as CSV."""
    made = table(rows, caption, missing, heads)
    return (
        made if len(rows) <= most else details(caption, made, "bulk" if len(rows) > PRINTED else "")
    )


def name_of(setting: str) -> str:
    """A setting as tables and legends call it; a mixture by its short name only, which tells its ratio."""
    found = treatment(setting)
    if found.ratio is not None or found.short == found.label:
        return found.short
    return (
        f"{found.label} ({found.short})" if " " in found.short else f"{found.short} {found.label}"
    )


def legend(entries: Iterable[tuple[str, str]], shape: str = "") -> Markup:
    """(colour, text) pairs as a list of patches."""
    items = [
        Markup('<li><i class="{}" style="background:{}"></i>{}</li>').format(shape, color, text)
        for color, text in entries
    ]
    return Markup('<ul class="legend">') + Markup("").join(items) + Markup("</ul>")


def key(settings: Iterable[str]) -> Markup:
    """The legend of settings."""
    return legend((colors.of(setting), name_of(setting)) for setting in settings)


def figure(
    panels: Sequence[tuple[str, Markup]], caption: str, legends: Markup | str = ""
) -> Markup:
    """Titled panels side by side where there is room, with one caption."""
    drawn = [
        Markup('<div class="panel"><p class="title">{}</p>{}</div>').format(title, chart)
        for title, chart in panels
    ]
    return Markup(
        '<figure>{}<div class="panels">{}</div><figcaption>{}</figcaption></figure>'
    ).format(Markup(legends), Markup("").join(drawn), caption)


def details(summary: str, content: Markup, kind: str = "") -> Markup:
    return Markup('<details class="{}"><summary>{}</summary>{}</details>').format(
        kind, summary, content
    )


def joined(parts: Iterable[Markup | str]) -> Markup:
    """Markup as it is, text escaped."""
    return Markup("").join(escape(part) for part in parts)


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(names: Sequence[str]) -> str:
    return (
        names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
    )
