"""What happened while the arms trained: their loss, and what the model still knew."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from ift_scale.io.manifests import Manifest
from ift_scale.report import colors, live
from ift_scale.report.facts import Facts
from ift_scale.report.html import details, figure, joined, key, legend, name_of, paragraph
from ift_scale.report.svg import Axis, Chart, limits
from ift_scale.treatments import in_order

MOST_BANDS = 5
"""Settings of one panel beyond which bands would hide each other."""
POINTS = 80
"""Of a curve that is drawn; a longer one is averaged over stretches."""


def losses(facts: Facts) -> Markup | None:
    curves = {
        arm: _losses(facts.sources.train / arm.name / "metrics.jsonl") for arm in facts.sources.arms
    }
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
            panels.append((domain, _loss_panel(by_setting, domain)))
    if not panels:
        return None
    bands = (
        "; bands: from the least to the largest seed" if len(facts.settings) <= MOST_BANDS else ""
    )
    caption = f"Loss on the supervised tokens. Lines: mean over seeds{bands}."
    return figure(panels, caption, key(facts.settings))


def _losses(path: Path) -> list[float]:
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [float("nan") if row.get("loss") is None else float(row["loss"]) for row in rows]


def _loss_panel(by_setting: dict[str, list[np.ndarray]], domain: str) -> Markup:
    drawn = {}
    for setting, curves in by_setting.items():
        if curves:
            steps = min(len(curve) for curve in curves)
            stretches = np.array_split(np.arange(steps), min(POINTS, steps))
            values = np.array([[curve[s].mean() for s in stretches] for curve in curves])
            drawn[setting] = ([float(s.mean()) + 1 for s in stretches], values)
    most = max(xs[-1] for xs, _ in drawn.values())
    low, high = limits([v for _, values in drawn.values() for v in values.ravel()], 0)
    chart = Chart(
        Axis(0, most, "optimizer step"),
        Axis(low, high, "loss, nats a token"),
        f"Training loss in {domain}",
    )
    for setting, (xs, values) in drawn.items():
        if len(by_setting) <= MOST_BANDS:
            chart.band(xs, values.min(0), values.max(0), colors.of(setting))
        chart.line(xs, values.mean(0), colors.of(setting))
    return chart.svg()


def live_share(manifests: list[Manifest]) -> str:
    """Share of the arms' training time that live knowledge took."""
    asked = sum(m.seconds.get("live", 0.0) for m in manifests)
    whole = asked + sum(m.seconds.get("steps", 0.0) for m in manifests)
    return f"{asked / whole:.1%}" if whole else "an unknown share"


def live_knowledge(facts: Facts) -> Markup | None:
    found = facts.live
    if not len(found):
        return None
    text = (
        "The arm's own held-out questions (HOMO), asked without examples in the training template on the training ranks while it "
        f"trained. It took {live_share(facts.sources.manifests.get('train', []))} of the time of the arms' steps. Against the "
        "base model, "
        "few-shot, as above. Arms that were asked at other steps are interpolated; one that stopped early keeps its last value."
    )
    domains, settings = (
        list(dict.fromkeys(found.domain)),
        in_order(list(dict.fromkeys(found.setting))),
    )
    panels = [
        (
            f"{domain}: {label}",
            _live_panel(
                found[found.domain == domain],
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
            "Lines: mean over seeds; bands: from the least to the largest seed.",
            key(settings),
        ),
    ]
    grades = live.graded(found)
    panels = []
    for domain in domains if grades else []:
        for setting in settings:
            arms = found[(found.domain == domain) & (found.setting == setting)]
            # A domain may have no question of a grade, or no arm of a setting that was asked.
            kinds = [grade for grade in grades if len(arms) and arms[grade].notna().all()]
            if kinds:
                panels.append(
                    (
                        f"{domain}: {name_of(setting)}",
                        _grade_panel(arms, kinds, f"{setting} in {domain}"),
                    )
                )
    if panels:
        entries = legend((colors.GRADES[grade], grade) for grade in grades)
        caption = "Accuracy by what the base model knew of the questions before (SliCK's grades)."
        parts.append(details("By grade of knowledge", figure(panels, caption, entries)))
    return joined(parts)


def _live_panel(found: pd.DataFrame, settings: list[str], measure: str, about: str) -> Markup:
    curves = {
        s: live.curve(found[found.setting == s], measure)
        for s in settings
        if (found.setting == s).any()
    }
    ends = [value for curve in curves.values() for name in ("low", "high") for value in curve[name]]
    axis = Axis(*limits(ends), percent=measure == "accuracy")
    chart = Chart(
        Axis(0, max(float(found.step.max()), 1), "optimizer step"), axis, about, height=200
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
