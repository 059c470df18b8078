"""The change by the prompt and that by training, and what an arm forgets against its KL."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ift_scale.report import colors
from ift_scale.report.coverage import coverage_note, label, overall
from ift_scale.report.facts import Facts
from ift_scale.report.html import (
    figure,
    folded,
    joined,
    key,
    no_interval_note,
    paragraph,
    table,
)
from ift_scale.report.svg import Axis, Chart, across, limits
from ift_scale.report.text import absent, interval, number, points, reasons_of, setting_name

_PARTS = {
    "format": "format",
    "content": "content",
    "total": "total",
    "content_few_shot": "content, few-shot",
}
_FITTED = {"kl_own": "questions of the arm's domain", "kl_other": "questions of other domains"}


def body(facts: Facts) -> Markup | None:
    frame = facts["format_content"]
    if not len(frame):
        return None
    whole = facts.ordered(overall(frame))
    text = (
        "Format: the base model 0-shot in the arms' template, compared with few-shot. Content: the "
        "arm compared with the base model, both 0-shot in this template. The changes of accuracy "
        "add up to the total, arm 0-shot against base few-shot; consistency and KL do not add up."
    )
    if frame.content_few_shot_change.notna().any():
        text += " Content, few-shot: the arm and the base model, both in the prompts of the probe."
    panels = [
        (f"Change of accuracy: {group}", _changes(facts, group))
        for group in facts.groups
        if (whole.group == group).any()
    ]
    drawn = facts["forgetting"].dropna(subset=["kl_own", "forgotten"])
    if len(drawn):
        panels.append(("Forgotten against KL", _forgotten(facts)))
    caption = (
        f"Percentage points and {facts.level} intervals, {facts.scope}. Hollow: format, the same "
        "for every setting; filled: content. Forgotten: the base model's 0-shot accuracy on OOD "
        "minus the arm's, one point per arm, against mean KL(base || arm) over options on HOMO."
        f"{coverage_note(whole)}"
    )
    parts_asked = [part for part in _PARTS if frame[f"{part}_change"].notna().any()]
    parts = [
        paragraph(text),
        figure(panels, caption, key([s for s in facts.settings if (whole.setting == s).any()])),
        folded(
            [_accuracy(row, parts_asked) for row in whole.to_dict("records")],
            f"Accuracy in percent and its changes in percentage points: {facts.scope}",
            reasons_of(whole, "the base model was not asked these questions few-shot."),
            heads=2,
        ),
        folded(
            [_agreement(row, parts_asked) for row in whole.to_dict("records")],
            f"Rank correlation of options and KL in nats: {facts.scope}",
            reasons_of(whole, "these questions have no options."),
            heads=2,
        ),
        no_interval_note(whole, "content_change"),
    ]
    return joined([*parts, _fits(facts)])


def _changes(facts: Facts, group: str) -> Markup:
    frame = facts.ordered(overall(facts["format_content"]))
    parts = ("format_change", "content_change")
    every = [
        value for name in parts for end in ("", "_low", "_high") for value in frame[name + end]
    ]
    rows = frame[frame.group == group].to_dict("records")
    low, high = limits([0.0, *every], -1, 1)
    chart = Chart(
        across([label(row) for row in rows]),
        Axis(low, high, percent=True),
        f"Change of accuracy by format and by content on {group}",
    )
    chart.level(0)
    for index, row in enumerate(rows):
        color = colors.of(row["setting"])
        for name, x in zip(parts, (index - 0.15, index + 0.15), strict=True):
            chart.interval(x, row[f"{name}_low"], row[f"{name}_high"], color)
            chart.point(x, row[name], color, hollow=name == "format_change")
    return chart.svg()


def _forgotten(facts: Facts) -> Markup:
    drawn = facts["forgetting"].dropna(subset=["kl_own", "forgotten"])
    chart = Chart(
        Axis(*limits([0.0, *drawn.kl_own], 0), "KL(base || arm) on HOMO, nats"),
        Axis(*limits([0.0, *drawn.forgotten]), "forgotten on OOD", percent=True),
        "Accuracy lost on other domains against the divergence from the base model",
    )
    chart.level(0)
    for row in drawn.to_dict("records"):
        chart.point(row["kl_own"], row["forgotten"], colors.of(row["setting"]), size=3)
    return chart.svg()


def _accuracy(row: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    return {
        "setting": setting_name(row["setting"]),
        "group": row["group"],
        "base few-shot": points(row["few_shot_accuracy"]),
        "base 0-shot": points(row["zero_shot_accuracy"]),
        "arm 0-shot": points(row["accuracy"]),
        **{
            title: interval(row, f"{part}_change", sign=True)
            for part, title in _PARTS.items()
            if part in parts
        },
    }


def _agreement(row: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    cells = {"setting": setting_name(row["setting"]), "group": row["group"]}
    for name, title in (("consistency", "rank correlation"), ("kl", "KL")):
        for part in parts:
            cells[f"{title}, {_PARTS[part]}"] = interval(row, f"{part}_{name}", share=False)
    return cells


def _fits(facts: Facts) -> Markup:
    rows = [
        {
            "KL on": _FITTED[row["measure"]],
            "arms": number(row["arms"], 0),
            "points forgotten per nat": interval(row, "slope", sign=True),
            "R² of a line": number(row["r_squared"], 2),
            "R² of a parabola": number(row["r_squared_quadratic"], 2),
            "remark": "" if absent(row["reason"]) else row["reason"],
        }
        for row in facts["forgetting_fit"].to_dict("records")
    ]
    if not rows:
        return paragraph("No line of forgetting: it needs OOD questions for some domain.", "note")
    if not any(row["remark"] for row in rows):
        rows = [{name: value for name, value in row.items() if name != "remark"} for row in rows]
    caption = (
        "Accuracy that arms lose on OOD (forgotten) against KL(base || arm), both 0-shot: mean "
        f"slope within domains, {facts.level} interval over domains"
    )
    return table(rows, caption, "is undefined: see the remark.")
