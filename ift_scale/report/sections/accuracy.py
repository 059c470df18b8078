"""Accuracy by setting: the main table and its picture, and the same by domain."""

from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.report import colors
from ift_scale.report.coverage import explained, label, names, over
from ift_scale.report.facts import ALL, SHARED, Facts, is_free, overall, without_pooled
from ift_scale.report.html import (
    bare,
    details,
    figure,
    interval,
    joined,
    listed,
    name_of,
    points_over,
    table,
)
from ift_scale.report.svg import Axis, Chart, across, limits
from ift_scale.treatments import POOLED


def body(facts: Facts) -> Markup:
    base, settings = facts["base"], facts["settings"]
    text = (
        f"Accuracy in percent, {facts.place}, with {facts.level} intervals over {over_what(facts)}."
    )
    charts = [(group, _panel(facts, group)) for group in facts.groups]
    lines = "Points: mean and interval; small dots: one arm each. Dashed: the base model, few-shot. Dotted: chance."
    lines += explained(overall(settings))
    parts = [
        table(wide(facts, overall(settings), base), text, NOT_ASKED),
        bare(overall(settings), "accuracy"),
    ]
    if len(shared := settings[settings.domain == SHARED]):
        parts.append(
            table(
                wide(facts, shared, base),
                f"The same over the domains that every setting has: {told(shared)}",
                NOT_ASKED,
            )
        )
    return joined([*parts, figure(charts, lines)])


NOT_ASKED = "was not asked of this setting."


def over_what(facts: Facts) -> str:
    """What the intervals of means are over; with one seed they are about these very models."""
    if len(facts.seeds) > 1:
        return "seeds and questions"
    return "questions alone (one seed: they are about these very models, not about the method)"


def told(shared: pd.DataFrame) -> str:
    """The domains of `shared` rows, which may not be the same for all groups."""
    by_group = {
        str(group): listed(names(part)) for group, part in shared.groupby("group", sort=False)
    }
    if len(set(by_group.values())) == 1:
        return next(iter(by_group.values()))
    return "; ".join(f"{group}: {those}" for group, those in by_group.items())


def wide(facts: Facts, settings: pd.DataFrame, base: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a setting, one column a group; the base model last, over the domains of the rows. `base`: its rows."""
    rows: list[dict[str, Any]] = []
    for setting, part in facts.ordered(settings).groupby("setting", sort=False):
        cells = {row["group"]: _cell(facts, row) for row in part.to_dict("records")}
        rows.append(
            {"setting": name_of(str(setting))} | {group: cells.get(group) for group in facts.groups}
        )
    means = {
        group: base_mean(facts, settings[settings.group == group], base, group)
        for group in facts.groups
    }
    rows.append(
        {"setting": "base model, few-shot"}
        | {g: points_over(row, "accuracy") for g, row in means.items()}
    )
    return rows


def _cell(facts: Facts, row: dict[str, Any]) -> str:
    alone = row.get("interval_over") == "questions" and len(facts.seeds) > 1
    return interval(row, "accuracy") + (" (one seed: questions alone)" if alone else "")


def base_mean(facts: Facts, rows: pd.DataFrame, base: pd.DataFrame, group: str) -> dict[str, Any]:
    """A row of the base model's mean over the domains that `rows` of a group are over: over `shared` ones those only."""
    own = without_pooled(base)
    own = own[own.group == group]
    if (rows.domain == SHARED).any():
        own = own[own.domain.isin(names(rows[rows.domain == SHARED]))]
    of = len(facts.single_domains)
    where = rows.domain.iloc[0] if len(rows) else ALL
    return {
        "domain": where,
        "accuracy": own.accuracy.mean(),
        "domains": own.domain.nunique(),
        "of_domains": of,
    }


def _panel(facts: Facts, group: str) -> Markup:
    settings, arms, base = (
        facts.ordered(overall(facts["settings"])),
        without_pooled(facts["arms"]),
        without_pooled(facts["base"]),
    )
    # All groups on one scale.
    ends = limits(
        [
            *settings.accuracy_low,
            *settings.accuracy_high,
            *arms.accuracy,
            *base.accuracy,
            facts.sources.chance,
        ],
        0,
        1,
    )
    found = settings[settings.group == group]
    labels = [label(row) for row in found.to_dict("records")]
    chart = Chart(
        across(labels), Axis(*ends, "accuracy", percent=True), f"Accuracy on {group} by setting"
    )
    chart.level(base[base.group == group].accuracy.mean())
    if not is_free(group):
        chart.level(facts.sources.chance, "dotted")
    for place, row in enumerate(found.to_dict("records")):
        color = colors.of(row["setting"])
        own = arms[(arms.setting == row["setting"]) & (arms.group == group)].accuracy
        for i, value in enumerate(own):
            chart.point(place - 0.2 + 0.12 * (i % 3 - 1), value, color, size=1.6)
        chart.interval(place + 0.12, row["accuracy_low"], row["accuracy_high"], color)
        chart.point(place + 0.12, row["accuracy"], color, hollow=bool(over(row)))
    return chart.svg()


def by_domain(facts: Facts) -> Markup | None:
    settings, base = facts["settings"], facts["base"]
    there = [domain for domain in facts.domains if (settings.domain == domain).any()]
    if len(there) < 2:
        return None
    parts = []
    for domain in there:
        title = "pooled: one model across the domains" if domain == POOLED else domain
        rows = wide(facts, settings[settings.domain == domain], base[base.domain == domain])
        shown = table(rows, f"Accuracy in percent with {facts.level} intervals: {title}", NOT_ASKED)
        parts.append(details(title, shown))
    return joined(parts)
