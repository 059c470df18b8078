"""Training curves of the arms: loss and live knowledge."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from ift_scale.io.manifests import Manifest
from ift_scale.report import colors, live
from ift_scale.report.facts import Facts
from ift_scale.report.html import details, figure, joined, key, legend, paragraph
from ift_scale.report.svg import Axis, Chart, limits
from ift_scale.report.text import setting_name
from ift_scale.treatments import in_order

MOST_BANDS = 5
"""Maximum number of settings with bands in one panel; more would hide each other."""
POINTS = 80
"""Maximum number of points of a curve; longer curves are averaged over intervals of steps."""


def losses(facts: Facts) -> Markup | None:
    curves = {
        arm: _losses(facts.inputs.train / arm.name / "metrics.jsonl") for arm in facts.inputs.arms
    }
    validated = _validation(facts)
    panels = []
    for domain in facts.domains:
        by_setting = {
            setting: [
                np.array(values)
                for arm, values in curves.items()
                if (arm.domain, arm.setting) == (domain, setting) and values
            ]
            for setting in facts.settings
        }
        if any(by_setting.values()):
            measured = validated[validated.domain == domain]
            panels.append((domain, _loss_panel(by_setting, measured, domain)))
    if not panels:
        return None
    bands = "; bands: minimum to maximum over seeds" if len(facts.settings) <= MOST_BANDS else ""
    dotted = (
        "; dotted: validation loss, on examples that are not trained on" if len(validated) else ""
    )
    caption = f"Loss on the supervised tokens. Lines: mean over seeds{bands}{dotted}."
    return figure(panels, caption, key(facts.settings))


def _losses(path: Path) -> list[float]:
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [float("nan") if row.get("loss") is None else float(row["loss"]) for row in rows]


def _validation(facts: Facts) -> pd.DataFrame:
    """Returns one row per arm and measurement of the validation loss; NaN if non-finite."""
    rows = []
    for arm in facts.inputs.arms:
        path = facts.inputs.train / arm.name / "validation.jsonl"
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                measured = {name: row[name] for name in ("step", "validation_loss")}
                rows.append(arm.model_dump(include={"domain", "setting", "seed"}) | measured)
    columns = ["domain", "setting", "seed", "step", "validation_loss"]
    return pd.DataFrame(rows, columns=columns).astype({"validation_loss": float})


def _loss_panel(
    by_setting: dict[str, list[np.ndarray]], validated: pd.DataFrame, domain: str
) -> Markup:
    drawn = {}
    for setting, curves in by_setting.items():
        if curves:
            steps = min(len(curve) for curve in curves)
            stretches = np.array_split(np.arange(steps), min(POINTS, steps))
            values = np.array([[curve[s].mean() for s in stretches] for curve in curves])
            drawn[setting] = ([float(s.mean()) + 1 for s in stretches], values)
    means = {
        setting: live.curve(arms, "validation_loss")
        for setting, arms in validated.groupby("setting")
    }
    ends = [xs[-1] for xs, _ in drawn.values()] + [c.step.max() for c in means.values()]
    losses = [loss for _, values in drawn.values() for loss in values.ravel()]
    low, high = limits(losses + [loss for c in means.values() for loss in c["mean"]], 0)
    chart = Chart(
        Axis(0, max(ends), "optimizer step"),
        Axis(low, high, "loss, nats per token"),
        f"Training loss in {domain}",
    )
    for setting, (xs, values) in drawn.items():
        if len(by_setting) <= MOST_BANDS:
            chart.band(xs, values.min(0), values.max(0), colors.of(setting))
        chart.line(xs, values.mean(0), colors.of(setting))
        if setting in means:
            curve = means[setting]
            chart.line(curve.step, curve["mean"], colors.of(setting), "dotted")
    return chart.svg()


def live_share(manifests: list[Manifest]) -> str:
    """Returns the share of the arms' training time spent on live knowledge, as text."""
    asked = sum(m.seconds.get("live", 0.0) for m in manifests)
    whole = asked + sum(m.seconds.get("steps", 0.0) for m in manifests)
    return f"{asked / whole:.1%}" if whole else "an unknown share"


def live_knowledge(facts: Facts) -> Markup | None:
    frame = facts.live
    if not len(frame):
        return None
    text = (
        "The arm's own held-out questions (HOMO), asked without examples in the training template "
        "on the training ranks during training. This took "
        f"{live_share(facts.inputs.manifests.get('train', []))} of the arms' training time. "
        "Compared with the base model, few-shot, as above. Values between an arm's measurements "
        "are interpolated; an arm that stopped early keeps its last value."
    )
    domains, settings = (
        list(dict.fromkeys(frame.domain)),
        in_order(list(dict.fromkeys(frame.setting))),
    )
    panels = [
        (
            f"{domain}: {label}",
            _live_panel(
                frame[frame.domain == domain],
                settings,
                measure,
                f"{label} while training in {domain}",
            ),
        )
        for domain in domains
        for measure, label in live.MEASURES.items()
    ]
    parts = [
        paragraph(text),
        figure(
            panels,
            "Lines: mean over seeds; bands: minimum to maximum over seeds.",
            key(settings),
        ),
    ]
    grades = live.graded(frame)
    panels = []
    for domain in domains if grades else []:
        for setting in settings:
            arms = frame[(frame.domain == domain) & (frame.setting == setting)]
            # A domain may have no question of a grade, or no measured arm of a setting.
            kinds = [grade for grade in grades if len(arms) and arms[grade].notna().all()]
            if kinds:
                panels.append(
                    (
                        f"{domain}: {setting_name(setting)}",
                        _grade_panel(arms, kinds, f"{setting} in {domain}"),
                    )
                )
    if panels:
        entries = legend((colors.GRADES[grade], grade) for grade in grades)
        caption = "Accuracy by what the base model knew before training (SliCK's grades)."
        parts.append(details("By grade of knowledge", figure(panels, caption, entries)))
    return joined(parts)


def _live_panel(frame: pd.DataFrame, settings: list[str], measure: str, about: str) -> Markup:
    curves = {
        s: live.curve(frame[frame.setting == s], measure)
        for s in settings
        if (frame.setting == s).any()
    }
    ends = [value for curve in curves.values() for name in ("low", "high") for value in curve[name]]
    axis = Axis(*limits(ends), percent=measure == "accuracy")
    chart = Chart(
        Axis(0, max(float(frame.step.max()), 1), "optimizer step"), axis, about, height=200
    )
    for setting, curve in curves.items():
        _curve(chart, curve, colors.of(setting))
    return chart.svg()


def _grade_panel(arms: pd.DataFrame, kinds: list[str], about: str) -> Markup:
    x = Axis(0, max(float(arms.step.max()), 1), "optimizer step")
    chart = Chart(x, Axis(-0.03, 1.03, percent=True), f"Accuracy by grade, {about}", height=180)
    for grade in kinds:
        _curve(chart, live.curve(arms, grade), colors.GRADES[grade])
    return chart.svg()


def _curve(chart: Chart, curve: pd.DataFrame, color: str) -> None:
    xs = curve.step.tolist()
    chart.band(xs, curve.low.tolist(), curve.high.tolist(), color)
    chart.line(xs, curve["mean"], color)
    for x, y in zip(xs, curve["mean"], strict=True) if len(xs) <= 20 else []:
        chart.point(x, y, color, size=1.8)
