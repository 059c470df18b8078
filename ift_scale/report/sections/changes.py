"""Question by question: what turned right or wrong, and what became of what the base model knew."""

from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.records import GRADES
from ift_scale.report import colors
from ift_scale.report.coverage import column, explained, label, over
from ift_scale.report.facts import Facts, overall
from ift_scale.report.html import (
    absent,
    bare,
    figure,
    folded,
    interval,
    joined,
    key,
    legend,
    name_of,
    number,
    paragraph,
    points,
    points_over,
    why,
)
from ift_scale.report.svg import Axis, Chart, across, down, limits

KINDS = {
    "right_right": ("stays right", "#008f68"),
    "wrong_right": ("turns right", "#2a78c8"),
    "right_wrong": ("turns wrong", "#d55e00"),
    "wrong_wrong": ("stays wrong", "#80808a"),
}
NOTHING = "no question was asked of both."


def transitions(facts: Facts) -> Markup | None:
    found = facts["transitions"]
    if not len(found):
        return None
    whole = facts.ordered(overall(found))
    panels = [
        (group, _bars(whole[whole.group == group], group))
        for group in facts.groups
        if (whole.group == group).any()
    ]
    text = "Of all questions, the share that the base model (few-shot) and the arm both answer rightly, only one of them, or neither."
    parts = [
        paragraph(text),
        figure(
            panels,
            f"Shares of the questions, {facts.place}.{explained(whole)}",
            legend((color, name) for name, color in KINDS.values()),
        ),
        folded(
            _shares(whole),
            f"Transitions in percent of the questions: {facts.place}",
            NOTHING,
            heads=2,
        ),
    ]
    for domain in (
        [d for d in facts.domains if (found.domain == d).any()]
        if found.domain.nunique() > 1
        else []
    ):
        rows = _shares(facts.ordered(found[found.domain == domain]))
        parts.append(
            folded(
                rows, f"Transitions in percent of the questions: {domain}", NOTHING, heads=2, most=0
            )
        )
    return joined(parts)


def _shares(rows: pd.DataFrame) -> list[dict[str, Any]]:
    cells = [
        {"setting": name_of(row["setting"]), "group": row["group"]}
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
    for place, row in enumerate(rows.to_dict("records")):
        left = 0.0
        for kind, (_, color) in KINDS.items():
            chart.bar(left, left + row[kind], place, 0.72, color, points(row[kind]))
            left += row[kind]
    return chart.svg()


def grades(facts: Facts) -> Markup | None:
    found = facts["grades"]
    if not len(found):
        return None
    order = ["known right", "uncertain", "known wrong", *GRADES]
    there = sorted(
        dict.fromkeys(found.grade), key=lambda g: order.index(g) if g in order else len(order)
    )
    whole = facts.ordered(overall(found))
    kinds = [
        kind
        for kind in ([g for g in there if g not in GRADES], [g for g in there if g in GRADES])
        if kind
    ]
    parts = [
        paragraph(
            "Accuracy of each arm by what the base model knew of the question before: what is kept, what is learnt, what is lost."
        )
    ]
    partial = any(over(row) for row in whole.to_dict("records"))
    hollow = " Hollow: over fewer domains than the run has, as the table says." if partial else ""
    for kind in kinds:
        panels = [
            (group, _by_grade(whole, group, kind))
            for group in facts.groups
            if (whole.group == group).any()
        ]
        parts.append(
            figure(
                panels,
                f"Accuracy by what was known, {facts.place}. Points: mean and interval.{hollow}",
                key(dict.fromkeys(whole.setting)),
            )
        )
    rows: list[dict[str, Any]] = [
        {
            "setting": name_of(row["setting"]),
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
    missing = why(whole, "there is no such question.")
    made = folded(rows, f"By what the base model knew: {facts.place}", missing, heads=3)
    return joined([*parts, made, bare(whole, "accuracy")])


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
    """Where answers were written and not only read off the letters."""
    parts = []
    if len(found := facts["generated"]):
        rows = [
            {"setting": name_of(row["setting"]), "group": row["group"], "by letter": points(row["letter_accuracy"]),
             "by written answer": points(row["generated_accuracy"]), "agreement": points(row["agreement"]),
             "names no option": points(row["unparsed"])}
            for row in facts.ordered(overall(found)).to_dict("records")
        ]  # fmt: skip
        caption = (
            f"Accuracy read off the letters and off the written answers, percent: {facts.place}"
        )
        parts.append(
            folded(column(rows, facts.ordered(overall(found))), caption, "no such answer.", heads=2)
        )
    if len(found := facts["abstention"]):
        whole = facts.ordered(overall(found))
        told = whole[whole.refused_known.notna() | whole.refused_unknown.notna()]
        panels = [
            (group, _refusals(told[told.group == group], group))
            for group in facts.groups
            if (told.group == group).any()
        ]
        entries = [
            ("#008f68", "refused of what the base model knew"),
            ("#d55e00", "refused of what it did not know"),
        ]
        caption = "A model that knows what it knows refuses much of what it did not know, and little of the rest."
        caption += explained(told, "refused_known", "refused_unknown")
        parts += [figure(panels, caption, legend(entries))] if panels else []
        rows = [
            {"setting": name_of(row["setting"]), "group": row["group"], "refused": points_over(row, "refused"),
             "of known": points_over(row, "refused_known"), "of unknown": points_over(row, "refused_unknown"),
             "answered": points_over(row, "answered"),
             "accuracy where answered": interval(row, "accuracy_answered"), "F1": _number(row, "f1"),
             "average precision": _number(row, "average_precision")}
            for row in whole.to_dict("records")
        ]  # fmt: skip
        missing = why(whole, "there was no such question or answer.")
        text = (
            "Known: answered rightly by the base model with a confidence above the threshold. F1: of refusals as a guess at what "
            "is not known. Average precision: of the answers given, by falling confidence; high where the wrong ones are the least "
            "sure."
        )
        made = folded(rows, f"Refusals in percent: {facts.place}", missing, heads=2)
        parts += [paragraph(text), made, bare(whole, "accuracy_answered")]
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
    for place, row in enumerate(rows.to_dict("records")):
        chart.line(
            [row["refused_known"], row["refused_unknown"]], [place, place], "currentColor", "thin"
        )
        chart.point(row["refused_known"], place, "#008f68", hollow=bool(over(row, "refused_known")))
        chart.point(
            row["refused_unknown"],
            place,
            "#d55e00",
            "diamond",
            hollow=bool(over(row, "refused_unknown")),
        )
    return chart.svg()
