"""Parts of the page: tables, figures, legends. Text is escaped; only our own tags are Markup."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from ift_scale.report import colors
from ift_scale.report.text import NONE, absent, setting_name

PRINTED = 70
"""Folded tables with more rows are left out when the page is printed."""
Row = Mapping[str, Any]


def paragraph(text: str | Markup, kind: str = "") -> Markup:
    return (
        Markup('<p class="{}">{}</p>').format(kind, text)
        if kind
        else Markup("<p>{}</p>").format(text)
    )


def table(
    rows: Sequence[Row] | pd.DataFrame, caption: str, missing: str = "", heads: int = 1
) -> Markup:
    """Returns a captioned table in a region that scrolls horizontally if needed.

    The first `heads` columns are row headers. `missing` explains empty cells and is required if
    there are any.
    """
    rows = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # Words are left-aligned, numbers right-aligned.
    kinds = {
        name: "words" if _of_words([row.get(name) for row in rows]) else "" for name in columns
    }
    body, gaps = [], False
    for row in rows:
        cells = []
        for index, name in enumerate(columns):
            value = NONE if absent(row.get(name)) else row[name]
            gaps |= isinstance(value, str) and NONE in value.split()
            cell = (
                '<th scope="row">{1}</th>'
                if index < heads
                else '<td class="{0}">{1}</td>'
                if kinds[name]
                else "<td>{1}</td>"
            )
            cells.append(Markup(cell).format(kinds[name], value))
        body.append(Markup("<tr>") + Markup("").join(cells) + Markup("</tr>"))
    assert missing or not gaps, f"{caption}: a cell is empty without an explanation"
    head = Markup("").join(
        Markup('<th scope="col" class="{}">{}</th>').format(kinds[name], name) for name in columns
    )
    note = paragraph(f"{NONE} {missing}", "note") if gaps else Markup("")
    return Markup(
        '<div class="wide{}" tabindex="0" role="region" aria-label="{}">'
        "<table><caption><span>{}</span></caption>"
        "<thead><tr>{}</tr></thead>"
        "<tbody>{}</tbody></table></div>{}"
    ).format(
        " short" if len(rows) <= 20 else "", caption, caption, head, Markup("").join(body), note
    )


def no_interval_note(frame: pd.DataFrame, name: str) -> Markup:
    """Returns a note with the reasons for missing intervals of NAME; empty if none is missing."""
    without = frame[frame[name].notna() & frame[f"{name}_low"].isna()]
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
    present = [value for value in values if not absent(value) and value != NONE]
    if not present or not all(isinstance(value, str) for value in present):
        return False
    return any(len(v) > 50 for v in present) or not any(
        v.lstrip("+−<[(∞").startswith(tuple("0123456789")) for v in present
    )


def folded(
    rows: Sequence[Row], caption: str, missing: str = "", heads: int = 1, most: int = 16
) -> Markup:
    """Returns a table, folded if it has more than `most` rows."""
    made = table(rows, caption, missing, heads)
    return (
        made if len(rows) <= most else details(caption, made, "bulk" if len(rows) > PRINTED else "")
    )


def legend(entries: Iterable[tuple[str, str]], shape: str = "") -> Markup:
    """Returns a list of color patches for (color, text) pairs."""
    items = [
        Markup('<li><i class="{}" style="background:{}"></i>{}</li>').format(shape, color, text)
        for color, text in entries
    ]
    return Markup('<ul class="legend">') + Markup("").join(items) + Markup("</ul>")


def key(settings: Iterable[str]) -> Markup:
    """Returns the legend of settings."""
    return legend((colors.of(setting), setting_name(setting)) for setting in settings)


def figure(
    panels: Sequence[tuple[str, Markup]], caption: str, legends: Markup | str = ""
) -> Markup:
    """Returns titled panels, side by side if there is room, with one caption."""
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
    """Joins parts; plain text is escaped."""
    return Markup("").join(escape(part) for part in parts)
