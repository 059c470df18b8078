"""Paired differences of two settings: a forest plot and a table with both intervals, tests and power."""

from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.report.coverage import explained, over
from ift_scale.report.facts import Facts, overall
from ift_scale.report.html import (
    absent,
    bare,
    details,
    figure,
    folded,
    interval,
    joined,
    p_value,
    paragraph,
    points,
    why,
)
from ift_scale.report.svg import Axis, Chart, down, limits
from ift_scale.treatments import treatment

SHOWN, ZERO = "#2a78c8", "#80808a"


def pair(row: Any) -> str:
    return f"{treatment(row['first']).short} − {treatment(row['second']).short}"


def rows(comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "difference of": pair(row),
            "group": row["group"],
            "asked": f"{row['questions']:,.0f}\u00a0×\u00a0{row['seeds']:.0f}",
            "points [interval]": interval(row, "difference", sign=True),
            "p": p_value(row["p"]),
            "Holm p": p_value(row["holm_p"]),
            "detectable": points(row["detectable"]),
            "these models only: [interval]": _ends(row),
            "McNemar p": p_value(row["mcnemar_p"]),
        }
        for row in comparisons.to_dict("records")
    ]


def _ends(row: Any) -> str | None:
    low, high = row["questions_low"], row["questions_high"]
    return None if absent(low) else f"[{points(low, True)},\u00a0{points(high, True)}]"


def body(facts: Facts) -> Markup | None:
    found = facts["comparisons"]
    if not len(found):
        return paragraph("This run has no two settings to compare.")
    chosen = overall(found)
    text = (
        f"First setting minus second, on the same questions and seeds, over the domains that have both: {facts.place}, percentage "
        f"points with {facts.level} intervals. Asked: questions × seeds. The interval, p and Holm's p (corrected for the number of "
        "tests) are about the method: other seeds and other questions. Detectable: the smallest difference that would have been "
        "shown with power 0.8, before any correction. With one seed there are none of these."
    )
    models = (
        "The last two columns are about these very models, not about the method: the interval over questions alone, and McNemar's "
        "paired test of the questions answered differently, each once by the majority over seeds. Other seeds may give "
        "another result, so no finding is judged by them."
    )
    parts: list[Markup] = [paragraph(text), paragraph(models)]
    if len(chosen):
        order = [group for group in facts.groups if (chosen.group == group).any()]
        panels = [(group, _forest(chosen, group, f"Differences on {group}")) for group in order]
        parts += [
            figure(
                panels,
                f"Blue: the interval leaves zero out. Grey: it holds zero, or there is none.{explained(chosen)}",
            ),
            _table(chosen, f"Differences: {facts.place}"),
        ]
    for domain in (
        [d for d in facts.domains if (found.domain == d).any()]
        if found.domain.nunique() > 1
        else []
    ):
        part = found[found.domain == domain]
        order = [group for group in facts.groups if (part.group == group).any()]
        panels = [
            (group, _forest(part, group, f"Differences in {domain} on {group}")) for group in order
        ]
        parts.append(
            details(
                f"Differences in {domain}",
                joined([figure(panels, domain), _table(part, f"Differences: {domain}")]),
            )
        )
    return joined(parts)


def _table(part: pd.DataFrame, caption: str) -> Markup:
    missing = why(part, "not computed in this run.")
    return joined(
        [folded(rows(part), caption, missing, heads=2, most=36), bare(part, "difference")]
    )


def _forest(found: pd.DataFrame, group: str, about: str) -> Markup:
    low, high = limits([*found.difference_low, *found.difference, *found.difference_high, 0.0])
    records = found[found.group == group].to_dict("records")
    names = [
        pair(row) + (f" ({row['domains']:.0f}/{row['of_domains']:.0f})" if over(row) else "")
        for row in records
    ]
    chart = Chart(
        Axis(low, high, "difference of accuracy", percent=True),
        down(names),
        about,
        height=24 * len(names) + 62,
    )
    chart.upright(0)
    for place, row in enumerate(records):
        color = SHOWN if row["difference_low"] > 0 or row["difference_high"] < 0 else ZERO
        chart.span(place, row["difference_low"], row["difference_high"], color)
        chart.point(row["difference"], place, color, hollow=bool(over(row)))
    return chart.svg()
