"""What arms acquired and forgot: against each other, and by set size, epoch and share restored."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.report import colors
from ift_scale.report.coverage import overall
from ift_scale.report.facts import Facts
from ift_scale.report.html import figure, folded, joined, key, legend, no_interval_note, paragraph
from ift_scale.report.svg import SHAPES, Axis, Chart, across, limits
from ift_scale.report.text import interval, reasons_of, setting_name
from ift_scale.treatments import dose_of, treatment

MEASURES = ("acquired", "forgotten")
_AXES = {
    "size": ("By set size", "questions in the set"),
    "epoch": ("By epoch", "epochs trained"),
    "average": ("By average with the base model", "share of the change kept"),
    "restored": ("By parameters restored", "share of the parameters restored"),
}
"""Title and label of the curves of each kind of dose."""
_WHOLE = "whole"
"""Name of the whole dose on an axis."""
_KINDS = ("trained", *_AXES)


def body(facts: Facts) -> Markup | None:
    frame = overall(facts["dose"])
    if not len(frame):
        return None
    frame = facts.ordered(frame)
    text = (
        "Acquired: accuracy on the held-out questions of the arm's own domain minus the base "
        "model's. Forgotten: the base model's accuracy on the benchmarks of other domains minus "
        f"the arm's. {_prompts(frame)} Percentage points, paired by question."
    )
    parts: list[Markup] = [paragraph(text)]
    if frame[list(MEASURES)].notna().all(axis=1).sum() > 1:
        shapes = {setting: _shape(setting) for setting in frame.setting}
        marks = {setting: (colors.of(setting), shapes[setting]) for setting in frame.setting}
        caption = (
            f"{facts.scope}; crosses: {facts.level} intervals. Up and left is better. Ringed and "
            "joined by a line: no other setting acquired at least as much and forgot less."
        )
        panels = [("Acquired and forgotten", pareto([(frame, marks)]))]
        by_shape = [(SHAPES[i], kind) for i, kind in enumerate(_KINDS)]
        used = set(shapes.values())
        words = ", ".join(f"{shape}: {kind}" for shape, kind in by_shape if shape in used)
        parts.append(figure(panels, f"{caption} Shapes: {words}.", key(frame.setting)))
    parts += _all_curves(facts, frame)
    caption = f"Acquired and forgotten, percentage points: {facts.scope}"
    missing = reasons_of(frame, "the setting is the whole dose.")
    shown = folded([_row(row) for row in frame.to_dict("records")], caption, missing)
    return joined([*parts, shown, *(no_interval_note(frame, name) for name in MEASURES)])


def _prompts(frame: pd.DataFrame) -> str:
    if (frame.base == "0-shot").all():
        return "Both answer 0-shot."
    return "The base model answers few-shot and the arm 0-shot: both include the prompt's effect."


def _shape(setting: str) -> str:
    dose = dose_of(setting)
    return SHAPES[_KINDS.index(dose.kind or ("size" if dose.size else "trained"))]


def best(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows that no other row dominates, from the least forgotten to the most acquired.

    A row dominates another if it acquired at least as much and forgot at most as much, and one of
    the two by a difference.
    """
    there = frame.dropna(subset=list(MEASURES)).sort_values(
        ["forgotten", "acquired"], ascending=[True, False], kind="stable"
    )
    before = there.acquired.cummax().shift(fill_value=float("-inf"))
    return there[there.acquired > before]


def pareto(marked: Sequence[tuple[pd.DataFrame, Mapping[str, tuple[str, str]]]]) -> Markup:
    """Draws the settings of several tables, each with its settings' (color, shape)."""
    every = pd.concat([frame for frame, _ in marked])
    ends = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    x = Axis(*limits([0.0, *every[ends[3:]].to_numpy(float).ravel()]), "forgotten", percent=True)
    y = Axis(*limits([0.0, *every[ends[:3]].to_numpy(float).ravel()]), "acquired", percent=True)
    chart = Chart(x, y, "Acquired against forgotten", height=300)
    chart.upright(0)
    chart.level(0)
    front = best(every)
    chart.line(front.forgotten, front.acquired, "currentColor", "dotted")
    for frame, marks in marked:
        for row in frame.to_dict("records"):
            color, shape = marks[row["setting"]]
            at = (row["forgotten"], row["acquired"])
            chart.interval(at[0], row["acquired_low"], row["acquired_high"], color)
            chart.span(at[1], row["forgotten_low"], row["forgotten_high"], color)
            chart.point(*at, color, shape, 4.5)
    for row in front.to_dict("records"):
        chart.point(row["forgotten"], row["acquired"], "currentColor", size=7.5, hollow=True)
    return chart.svg()


def _all_curves(facts: Facts, frame: pd.DataFrame) -> list[Markup]:
    """Returns a figure for each kind of dose that the run has."""
    doses = frame.assign(dose=frame.setting.map(dose_of))
    parts = []
    for kind, (title, label) in _AXES.items():
        curves = {s: found for s in doses.setting if len(found := _curve(doses, s, kind)) > 1}
        if curves:
            panels = [(name, _curves(curves, name, label)) for name in MEASURES]
            caption = (
                f"{title}, {facts.scope}. Bands: {facts.level} intervals. {_WHOLE}: the whole set, "
                "trained to the end, without a change afterwards."
            )
            named = [(colors.of(setting), setting_name(setting)) for setting in curves]
            parts.append(figure(panels, caption, legend(named)))
    return parts


def _curve(doses: pd.DataFrame, setting: str, kind: str) -> pd.DataFrame:
    """Returns the doses of one kind that are less than `setting`, and the setting itself last."""

    def is_part(dose: Any) -> bool:
        own = dose.kind or ("size" if dose.size else None)
        return bool(own == kind and dose.whole == setting)

    smaller = doses[doses.dose.map(is_part)]
    amounts = smaller.dose.map(lambda dose: dose.amount or dose.size)
    smaller = smaller.assign(at=amounts.map(lambda value: f"{value:g}"), position=amounts)
    whole = doses[doses.setting == setting].assign(at=_WHOLE, position=float("inf"))
    # Restoring nothing is the whole dose.
    whole["position"] = 0.0 if kind == "restored" else whole.position
    return pd.concat([smaller.sort_values("position"), whole]).sort_values("position")


def _curves(curves: Mapping[str, pd.DataFrame], name: str, label: str) -> Markup:
    every = pd.concat(curves.values()).sort_values("position")
    places = list(dict.fromkeys(every["at"]))
    ends = every[[name, f"{name}_low", f"{name}_high"]].to_numpy(float).ravel()
    axis = across(places)
    chart = Chart(
        Axis(axis.low, axis.high, label, marks=axis.marks),
        Axis(*limits([0.0, *ends]), name, percent=True),
        f"{name} by {label}",
    )
    chart.level(0)
    for setting, rows in curves.items():
        xs = [float(places.index(at)) for at in rows["at"]]
        low, high = rows[f"{name}_low"].to_list(), rows[f"{name}_high"].to_list()
        chart.band(xs, low, high, colors.of(setting))
        chart.line(xs, rows[name], colors.of(setting))
        for x, y in zip(xs, rows[name], strict=True):
            chart.point(x, y, colors.of(setting), size=3)
    return chart.svg()


def _row(row: dict[str, Any]) -> dict[str, Any]:
    whole = dose_of(row["setting"]).whole
    return {
        "setting": setting_name(row["setting"]),
        "acquired": interval(row, "acquired", sign=True),
        "forgotten": interval(row, "forgotten", sign=True),
        "less than": treatment(whole).short if whole else None,
        "acquired, minus that": interval(row, "acquired_change", sign=True),
        "forgotten, minus that": interval(row, "forgotten_change", sign=True),
    }
