"""Accuracy by setting: the main table and its picture, and the same by domain."""

from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.report import colors
from ift_scale.report.facts import Facts, is_free, overall, without_pooled
from ift_scale.report.html import details, figure, interval, joined, name_of, points, table
from ift_scale.report.svg import Axis, Chart, across, limits
from ift_scale.treatments import POOLED, treatment


def body(facts: Facts) -> Markup:
    seeds, base = len(facts.seeds), facts["base"]
    what = "seeds and questions" if seeds > 1 else "questions"
    text = f"Accuracy in percent, {facts.place}, with {facts.level} bootstrap intervals over {what}."
    charts = [(group, _panel(facts, group)) for group in facts.groups]
    lines = "Points: mean and interval; small dots: one arm each. Dashed: the base model, few-shot. Dotted: chance."
    return joined(
        [
            table(wide(facts, overall(facts["settings"]), base), text, "was not asked of this setting."),
            figure(charts, lines),
        ]
    )


def wide(facts: Facts, settings: pd.DataFrame, base: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a setting, one column a group; the base model last. `base`: its rows of the domains meant."""
    rows: list[dict[str, Any]] = []
    for setting, part in facts.ordered(settings).groupby("setting", sort=False):
        cells = {row["group"]: interval(row, "accuracy") for row in part.to_dict("records")}
        rows.append({"setting": name_of(str(setting))} | {group: cells.get(group) for group in facts.groups})
    means = without_pooled(base).groupby("group").accuracy.mean()
    rows.append({"setting": "base model, few-shot"} | {group: points(means.get(group)) for group in facts.groups})
    return rows


def _panel(facts: Facts, group: str) -> Markup:
    settings, arms, base = facts.ordered(overall(facts["settings"])), without_pooled(facts["arms"]), without_pooled(facts["base"])
    # All groups on one scale.
    ends = limits([*settings.accuracy_low, *settings.accuracy_high, *arms.accuracy, *base.accuracy, facts.sources.chance], 0, 1)
    found = settings[settings.group == group]
    names = [treatment(s).short for s in found.setting]
    chart = Chart(across(names), Axis(*ends, "accuracy", percent=True), f"Accuracy on {group} by setting")
    chart.level(base[base.group == group].accuracy.mean())
    if not is_free(group):
        chart.level(facts.sources.chance, "dotted")
    for place, row in enumerate(found.to_dict("records")):
        color = colors.of(row["setting"])
        own = arms[(arms.setting == row["setting"]) & (arms.group == group)].accuracy
        for i, value in enumerate(own):
            chart.point(place - 0.2 + 0.12 * (i % 3 - 1), value, color, size=1.6)
        chart.interval(place + 0.12, row["accuracy_low"], row["accuracy_high"], color)
        chart.point(place + 0.12, row["accuracy"], color)
    return chart.svg()


def by_domain(facts: Facts) -> Markup | None:
    settings, base = facts["settings"], facts["base"]
    names = [domain for domain in facts.domains if (settings.domain == domain).any()]
    if len(names) < 2:
        return None
    parts = []
    for domain in names:
        label = "pooled: one model across the domains" if domain == POOLED else domain
        rows = wide(facts, settings[settings.domain == domain], base[base.domain == domain])
        shown = table(rows, f"Accuracy in percent with {facts.level} intervals: {label}", "was not asked of this setting.")
        parts.append(details(label, shown))
    return joined(parts)
