"""Accuracy by ratio: mixtures of self-aligning and incompatible examples, and of unknown and known ones."""

from collections.abc import Callable
from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.report import colors
from ift_scale.report.coverage import names as covered
from ift_scale.report.coverage import over, side_by_side
from ift_scale.report.facts import ALL, SHARED, Facts, is_free
from ift_scale.report.html import (
    details,
    figure,
    interval,
    joined,
    paragraph,
    points_over,
    table,
    why,
)
from ift_scale.report.sections.accuracy import base_mean
from ift_scale.report.svg import Axis, Chart, limits
from ift_scale.treatments import consistency_ratio, unknown_ratio

Ratio = Callable[[str], float | None]
KINDS: tuple[tuple[Ratio, str, str], ...] = (
    (consistency_ratio, "self_aligning", "share of self-aligning examples"),
    (unknown_ratio, "unknown", "share of unknown questions"),
)


def body(facts: Facts) -> Markup | None:
    parts = [part for kind in KINDS if (part := _kind(facts, *kind)) is not None]
    return joined(parts) if parts else None


def _kind(facts: Facts, ratio_of: Ratio, color: str, label: str) -> Markup | None:
    settings = facts["settings"]
    found = (
        settings.assign(ratio=pd.to_numeric(settings.setting.map(ratio_of)))
        .dropna(subset=["ratio"])
        .sort_values("ratio")
    )
    if found.ratio.nunique() < 3:
        return None
    mixed = ratio_of is consistency_ratio
    lines = "Line and band: mean and interval; ring: the best ratio; dashed: the base model, few-shot; dotted: chance."
    parts: list[Any] = [
        paragraph(
            "From sets that contradict the model (0, incompatible) to sets that repeat its own answers (1, self-aligning): where "
            "between the two is a set best?"
            if mixed
            else "From questions that the model knows (0) to questions that it does not (1)."
        )
    ]
    whole = side_by_side(found)
    names = [(ALL, facts.place, whole)] if len(whole) else []
    names += (
        [(d, d, found[found.domain == d]) for d in facts.domains if (found.domain == d).any()]
        if found.domain.nunique() > 1
        else []
    )
    for name, title, rows in names:
        panels = []
        for group in [g for g in facts.groups if (rows.group == g).any()]:
            part = rows[rows.group == group]
            those = (
                f"{len(covered(part))} of {len(facts.single_domains)} domains"
                if (part.domain == SHARED).any()
                else title
            )
            panels.append(
                (f"{group}: {those}", _panel(facts, rows, name, group, colors.of(color), label))
            )
        if name == ALL or len(names) == 1:
            parts += [figure(panels, lines + _unlike(rows)), _best(facts) if mixed else ""]
        else:
            parts.append(figure(panels, f"{title}: accuracy by {label}."))
    first = next((i for i, part in enumerate(parts) if i > 2), None)
    if len(names) > 1 and first is not None:
        parts = [*parts[:first], details("By domain", joined(parts[first:]))]
    return joined(parts)


def _panel(
    facts: Facts, found: pd.DataFrame, domain: str, group: str, color: str, label: str
) -> Markup:
    base = facts["base"] if domain == ALL else facts["base"].query("domain == @domain")
    low, high = limits(
        [*found.accuracy_low, *found.accuracy_high, *base.accuracy, facts.sources.chance], 0, 1
    )
    rows = found[found.group == group]
    about = f"Accuracy on {group} by {label}, {domain}"
    chart = Chart(
        Axis(-0.03, 1.03, label, marks=[(i / 5, f"{i / 5:g}") for i in range(6)]),
        Axis(low, high, "accuracy", percent=True),
        about,
        height=230,
    )
    chart.level(base_mean(facts, rows, base, group)["accuracy"])
    if not is_free(group):
        chart.level(facts.sources.chance, "dotted")
    xs = rows.ratio.tolist()
    alike = (
        rows.over.nunique() <= 1
    )  # means over unlike domains are no line, and none of them is the best
    if alike:
        chart.band(xs, rows.accuracy_low.tolist(), rows.accuracy_high.tolist(), color)
        chart.line(xs, rows.accuracy, color)
    best = rows.loc[rows.accuracy.idxmax()] if alike and rows.accuracy.notna().any() else None
    for row in rows.to_dict("records"):
        chart.point(
            row["ratio"],
            row["accuracy"],
            colors.of(row["setting"]),
            size=3,
            hollow=bool(over(row)) and not alike,
        )
    if best is not None:
        chart.point(best.ratio, best.accuracy, color, size=6.5, hollow=True)
        chart.point(best.ratio, best.accuracy, color, size=3)
        anchor = "start" if best.ratio < 0.2 else "end" if best.ratio > 0.8 else "middle"
        chart.text(best.ratio, best.accuracy, f"best: {best.ratio:g}", anchor, over=11)
    return chart.svg()


def _unlike(rows: pd.DataFrame) -> str:
    """What the caption adds where some ratio lacks a domain."""
    if (rows.domain == SHARED).any():
        return " Over the domains that every setting has."
    if any(part.over.nunique() > 1 for _, part in rows.groupby("group")):
        return " Hollow: over fewer domains than the run has; no domain has all ratios, so there is no line."
    return ""


def _best(facts: Facts) -> Markup:
    found = facts["best_ratio"]
    whole_first = pd.concat([found[found.domain == ALL], found[found.domain != ALL]])
    rows = [
        {
            "domain": row["domain"],
            "group": row["group"],
            "best ratio": None if pd.isna(row["best_ratio"]) else f"{row['best_ratio']:g}",
            "accuracy": points_over(row, "accuracy"),
            "best below 1": None if pd.isna(row["best_other"]) else f"{row['best_other']:g}",
            "its points against ratio 1": interval(
                row, "difference", sign=True, ends=("low", "high")
            ),
        }
        for row in whole_first.to_dict("records")
    ]
    if not rows:
        return Markup("")
    note = (
        "The best of several ratios is chosen on the questions that it is judged by, which flatters its difference; the interval "
        "is of the largest true difference and as wide as that choice needs (Bonferroni over the ratios)."
    )
    missing = why(found, "there is no arm at ratio 1.")
    return joined(
        [
            table(rows, f"The best ratio, with {facts.level} intervals", missing, heads=2),
            paragraph(note, "note"),
        ]
    )
