"""Question by question: answers that turned right or wrong, and accuracy by prior knowledge."""

from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.records import GRADES
from ift_scale.report import colors
from ift_scale.report.coverage import column, coverage_note, label, over, overall
from ift_scale.report.facts import Facts
from ift_scale.report.html import figure, folded, joined, key, legend, no_interval_note, paragraph
from ift_scale.report.svg import Axis, Chart, across, down, limits
from ift_scale.report.text import (
    absent,
    interval,
    number,
    points,
    points_over,
    reasons_of,
    setting_name,
)

KINDS = {
    "right_right": ("stays right", "#008f68"),
    "wrong_right": ("turns right", "#2a78c8"),
    "right_wrong": ("turns wrong", "#d55e00"),
    "wrong_wrong": ("stays wrong", "#80808a"),
}
NOTHING = "no question was asked of both models."


def transitions(facts: Facts) -> Markup | None:
    frame = facts["transitions"]
    if not len(frame):
        return None
    whole = facts.ordered(overall(frame))
    panels = [
        (group, _bars(whole[whole.group == group], group))
        for group in facts.groups
        if (whole.group == group).any()
    ]
    text = (
        "The share of all questions that both the base model (few-shot) and the arm answer "
        "correctly, only one of them, or neither."
    )
    parts = [
        paragraph(text),
        figure(
            panels,
            f"Shares of the questions, {facts.scope}.{coverage_note(whole)}",
            legend((color, name) for name, color in KINDS.values()),
        ),
        folded(
            _shares(whole),
            f"Transitions in percent of the questions: {facts.scope}",
            NOTHING,
            heads=2,
        ),
    ]
    for domain in (
        [d for d in facts.domains if (frame.domain == d).any()]
        if frame.domain.nunique() > 1
        else []
    ):
        rows = _shares(facts.ordered(frame[frame.domain == domain]))
        parts.append(
            folded(
                rows, f"Transitions in percent of the questions: {domain}", NOTHING, heads=2, most=0
            )
        )
    return joined(parts)


def _shares(rows: pd.DataFrame) -> list[dict[str, Any]]:
    cells = [
        {"setting": setting_name(row["setting"]), "group": row["group"]}
        | {KINDS[k][0]: points(row[k]) for k in KINDS}
        for row in rows.to_dict("records")
    ]
    return column(cells, rows)


def _bars(rows: pd.DataFrame, group: str) -> Markup:
    names = [label(row) for row in rows.to_dict("records")]
    chart = Chart(
        Axis(0, 1, "share of the questions", percent=True),
        down(names),
        f"Transitions on {group}",
        26 * len(names) + 60,
    )
    for index, row in enumerate(rows.to_dict("records")):
        left = 0.0
        for kind, (_, color) in KINDS.items():
            chart.bar(left, left + row[kind], index, 0.72, color, points(row[kind]))
            left += row[kind]
    return chart.svg()


def grades(facts: Facts) -> Markup | None:
    frame = facts["grades"]
    if not len(frame):
        return None
    order = ["known right", "uncertain", "known wrong", *GRADES]
    present = sorted(
        dict.fromkeys(frame.grade), key=lambda g: order.index(g) if g in order else len(order)
    )
    whole = facts.ordered(overall(frame))
    kinds = [
        kind
        for kind in ([g for g in present if g not in GRADES], [g for g in present if g in GRADES])
        if kind
    ]
    parts = [
        paragraph(
            "Accuracy of each arm by what the base model knew about the question before training: "
            "what is kept, what is learned, what is lost."
        )
    ]
    partial = any(over(row) for row in whole.to_dict("records"))
    hollow = " Hollow: over fewer domains than the run has (see the table)." if partial else ""
    for kind in kinds:
        panels = [
            (group, _by_grade(whole, group, kind))
            for group in facts.groups
            if (whole.group == group).any()
        ]
        parts.append(
            figure(
                panels,
                f"Accuracy by what was known, {facts.scope}. Points: mean and interval.{hollow}",
                key(dict.fromkeys(whole.setting)),
            )
        )
    rows: list[dict[str, Any]] = [
        {
            "setting": setting_name(row["setting"]),
            "group": row["group"],
            "known before": row["grade"],
            "questions": number(row["questions"], 0),
            "accuracy": interval(row, "accuracy"),
            "consistency": " ".join(
                filter(None, [number(row["consistency"], 3), over(row, "consistency")])
            ),
        }
        for row in whole.to_dict("records")
    ]
    missing = reasons_of(whole, "there is no such question.")
    made = folded(rows, f"By what the base model knew: {facts.scope}", missing, heads=3)
    return joined([*parts, made, no_interval_note(whole, "accuracy")])


def _by_grade(rows: pd.DataFrame, group: str, kinds: list[str]) -> Markup:
    part = rows[rows.group == group]
    settings = list(dict.fromkeys(part.setting))
    ends = limits([*rows.accuracy_low, *rows.accuracy_high, *rows.accuracy], 0, 1)
    about = f"Accuracy on {group} by what the base model knew"
    chart = Chart(across(kinds), Axis(*ends, "accuracy", percent=True), about)
    for row in part[part.grade.isin(kinds)].to_dict("records"):
        offset = (settings.index(row["setting"]) - (len(settings) - 1) / 2) * 0.8 / len(settings)
        place, color = kinds.index(row["grade"]) + offset, colors.of(row["setting"])
        chart.interval(place, row["accuracy_low"], row["accuracy_high"], color)
        chart.point(place, row["accuracy"], color, size=3, hollow=bool(over(row)))
    return chart.svg()


def generated(facts: Facts) -> Markup | None:
    """Generated answers and refusals, if they were generated."""
    parts = []
    if len(frame := facts["generated"]):
        rows = [
            {
                "setting": setting_name(row["setting"]),
                "group": row["group"],
                "by letter": points(row["letter_accuracy"]),
                "by generated answer": points(row["generated_accuracy"]),
                "agreement": points(row["agreement"]),
                "no option named": points(row["unparsed"]),
            }
            for row in facts.ordered(overall(frame)).to_dict("records")
        ]
        caption = f"Accuracy of letter predictions and of generated answers, percent: {facts.scope}"
        parts.append(
            folded(column(rows, facts.ordered(overall(frame))), caption, "no such answer.", heads=2)
        )
    if len(frame := facts["abstention"]):
        whole = facts.ordered(overall(frame))
        judged = whole[whole.refused_known.notna() | whole.refused_unknown.notna()]
        panels = [
            (group, _refusals(judged[judged.group == group], group))
            for group in facts.groups
            if (judged.group == group).any()
        ]
        entries = [
            ("#008f68", "share refused of what the base model knew"),
            ("#d55e00", "share refused of what it did not know"),
        ]
        caption = (
            "A model that knows what it knows refuses most of what it did not know and little of "
            "the rest."
        )
        caption += coverage_note(judged, "refused_known", "refused_unknown")
        parts += [figure(panels, caption, legend(entries))] if panels else []
        rows = [
            {
                "setting": setting_name(row["setting"]),
                "group": row["group"],
                "refused": points_over(row, "refused"),
                "of known": points_over(row, "refused_known"),
                "of unknown": points_over(row, "refused_unknown"),
                "answered": points_over(row, "answered"),
                "accuracy where answered": interval(row, "accuracy_answered"),
                "F1": _number(row, "f1"),
                "average precision": _number(row, "average_precision"),
            }
            for row in whole.to_dict("records")
        ]
        missing = reasons_of(whole, "there was no such question or answer.")
        text = (
            "Known: answered correctly by the base model with a confidence above the threshold. "
            "F1: refusals as predictions of what is not known. Average precision: given answers in "
            "order of falling confidence; high if the wrong ones have the lowest confidence."
        )
        made = folded(rows, f"Refusals in percent: {facts.scope}", missing, heads=2)
        parts += [paragraph(text), made, no_interval_note(whole, "accuracy_answered")]
    return joined(parts) if parts else None


def _number(row: dict[str, Any], name: str) -> str:
    return " ".join(filter(None, [number(row[name]), "" if absent(row[name]) else over(row, name)]))


def _refusals(rows: pd.DataFrame, group: str) -> Markup:
    names = [label(row, "refused_known") for row in rows.to_dict("records")]
    height = 22 * len(names) + 62
    chart = Chart(
        Axis(-0.02, 1.02, "share refused", percent=True),
        down(names),
        f"Refusals on {group} by setting",
        height,
    )
    for index, row in enumerate(rows.to_dict("records")):
        chart.line(
            [row["refused_known"], row["refused_unknown"]], [index, index], "currentColor", "thin"
        )
        chart.point(row["refused_known"], index, "#008f68", hollow=bool(over(row, "refused_known")))
        chart.point(
            row["refused_unknown"],
            index,
            "#d55e00",
            "diamond",
            hollow=bool(over(row, "refused_unknown")),
        )
    return chart.svg()
