"""The training items asked again: fit, transfer to other forms, and the cost elsewhere."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.records import AS_TRAINED, WITH_OPTIONS
from ift_scale.report import colors
from ift_scale.report.coverage import overall
from ift_scale.report.facts import Facts
from ift_scale.report.html import figure, folded, joined, key, no_interval_note, paragraph
from ift_scale.report.svg import Axis, Chart, across, limits
from ift_scale.report.text import interval, number, points, reasons_of, setting_name

_ALL = "all"
_TEXT = (
    "Each arm is asked its own training items, and the base model the same items in the same "
    "0-shot prompts. Fitted: the arm, asked as in training, gives the answer of its set, which "
    "some settings choose to be another than the right one. New: fitted, and the base model "
    "answers otherwise. Only new items show that something was learnt, and only if more are fitted "
    "than guessing gives; a guess is fitted too. Transfer to another form is given for them, next "
    "to the base model's answers in that form."
)
_TEXT_SETS = (
    "The sets show no options. As trained and paraphrased, the option whose text is the likeliest "
    "counts as the answer; with options, the likeliest letter."
)


def body(facts: Facts) -> Markup | None:
    whole = overall(facts["learnt"])
    if not len(whole):
        return None
    whole = facts.ordered(whole.assign(group=""))
    every = whole[whole.grade == _ALL]
    fitted = whole[(whole.form == AS_TRAINED) & (whole.grade != _ALL)]
    settings = list(dict.fromkeys(whole.setting))
    panels = [
        ("The set's answer, by form", _marks(facts, every, "form", settings)),
        ("As trained, by prior knowledge", _marks(facts, fitted, "grade", settings)),
        *_scatter(facts),
    ]
    caption = (
        f"{facts.scope[0].upper()}{facts.scope[1:]}. Share of items that are answered as the set "
        f"teaches, with {facts.level} intervals; hollow: the base model on the same prompts; "
        "dotted: chance. Last: one point per arm."
    )
    none = "there is no such item, or no options to guess from."
    shown = folded(
        [_row(row) for row in every.to_dict("records")],
        f"Training items asked again, percent: {facts.scope}",
        reasons_of(every, none),
        heads=2,
        most=40,
    )
    text = f"{_TEXT} {_TEXT_SETS}" if (every.form == WITH_OPTIONS).any() else _TEXT
    parts = [paragraph(text), figure(panels, caption, key(settings)), shown]
    return joined([*parts, no_interval_note(every, "trained"), *_curve(facts)])


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "setting": setting_name(row["setting"]),
        "form": row["form"],
        "items": number(row["items"], 0),
        "chance": points(row["chance"]),
        "the set's answer": interval(row, "trained"),
        "base model": interval(row, "trained_before"),
        "right answer": interval(row, "right"),
        "base model right": interval(row, "right_before"),
        "transfer of fitted items": interval(row, "transfer"),
        "transfer of new items": interval(row, "new_transfer"),
        "base model on these": interval(row, "new_before"),
    }


def _marks(facts: Facts, frame: pd.DataFrame, name: str, settings: Sequence[str]) -> Markup:
    """Draws the fit of every setting at the values of a column, from left to right."""
    values = list(dict.fromkeys(frame[name]))
    chart = Chart(
        across(values), Axis(0, 1.02, percent=True), f"Items answered as taught by {name}"
    )
    chart.level(facts.inputs.chance, "dotted")
    step = 0.7 / len(settings)
    for row in frame.to_dict("records"):
        offset = (settings.index(row["setting"]) - (len(settings) - 1) / 2) * step
        x, color = values.index(row[name]) + offset, colors.of(row["setting"])
        chart.point(x, row["trained_before"], color, size=3, hollow=True)
        chart.interval(x, row["trained_low"], row["trained_high"], color)
        chart.point(x, row["trained"], color, size=3)
    return chart.svg()


def _scatter(facts: Facts) -> list[tuple[str, Markup]]:
    frame = facts["learnt_points"]
    if not len(frame):
        return []
    group = next((g for g in facts.groups if (frame.group == g).any()), None)
    part = frame[frame.group == group]
    chart = Chart(
        Axis(*limits([*part.fitted_unknown, 0.0], 0, 1), "fitted and Unknown", percent=True),
        Axis(*limits([*part.change, 0.0]), "change of accuracy", percent=True),
        f"Change of accuracy on {group} by the share of the set that is fitted and Unknown",
    )
    chart.level(0)
    for row in part.to_dict("records"):
        chart.point(row["fitted_unknown"], row["change"], colors.of(row["setting"]))
    return [(f"{group}: accuracy against fitted Unknown items", chart.svg())]


def _curve(facts: Facts) -> list[Markup]:
    frame = facts["learnt_curve"]
    if not len(frame):
        return []
    text = (
        "SliCK's linear model (Gekhman et al. 2024): accuracy on test questions by the shares of "
        "the set that are fitted and Known, and fitted and Unknown, with a constant per domain. A "
        "slope of −10 means 10 points less accuracy if the whole set is of that kind than if "
        "nothing is fitted. Without SliCK grades, Unknown means not known right."
    )
    rows = [
        {
            "group": row["group"],
            "arms": number(row["points"], 0),
            "slope of fitted Known": interval(row, "known", sign=True),
            "slope of fitted Unknown": interval(row, "unknown", sign=True),
            "R²": number(row["r_squared"]),
        }
        for row in frame.to_dict("records")
    ]
    shown = folded(rows, "Accuracy by what was fitted, percentage points", reasons_of(frame, "."))
    return [paragraph(text), shown, no_interval_note(frame, "unknown")]
