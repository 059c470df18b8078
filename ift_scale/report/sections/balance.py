"""Balance of the sets: how far they differ in covariates that should not differ."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.config.construct import MatchingConfig
from ift_scale.report import colors
from ift_scale.report.coverage import label
from ift_scale.report.facts import Facts
from ift_scale.report.html import details, figure, joined, key, paragraph, table
from ift_scale.report.svg import Axis, Chart, down, limits
from ift_scale.report.text import number, points, setting_name
from ift_scale.treatments import in_order

STAGES = ("before", "after")
COVARIATES = {
    "letter": "target letter",
    "author": "author",
    "confidence": "confidence",
    "length": "length",
}
_FARTHEST = 2.0
"""Larger distances are written as numbers: they would compress the axis for all others."""
_SHADES = ("#1f4e79", "#2a78c8", "#5ba3dd", "#a5cdf0", "#c8a2d8", "#a06ab4", "#704784", "#80808a")


def balance(facts: Facts) -> list[Markup]:
    """Returns figures and tables of letters and distances, before and after matching."""
    frame = facts["balance"]
    if not len(frame):
        return []
    settings = in_order(list(dict.fromkeys(frame.setting)))
    stages = [stage for stage in STAGES if (frame.stage == stage).any()]
    matched = facts.config.construct.matching != MatchingConfig()
    if not matched:
        stages, frame = stages[-1:], frame[frame.stage == stages[-1]]
    intro = (
        "Sets should differ only in their agreement with the model. Any other difference could be "
        "mistaken for an effect of knowledge: a letter that one set prefers, questions with higher "
        "confidence, longer responses, another author. "
        + (
            "Before: as drawn; after: matched, as trained on."
            if matched
            else "This run matches none of these."
        )
    )
    parts = [Markup("<h3>Balance of the sets</h3>"), paragraph(intro)]
    letters = frame[frame.covariate == "letter"]
    if len(letters):
        levels = sorted({str(level) for level in letters.level})
        panels = [
            (
                f"{stage} matching" if matched else "as trained on",
                _letters(letters[letters.stage == stage], settings, levels, stage),
            )
            for stage in stages
        ]
        parts.append(
            figure(
                panels,
                f"Letters of the taught option: mean share over domains and seeds.{_unlike(frame)}",
            )
        )
    distances = _distances(frame)
    panels = []
    for covariate, name in COVARIATES.items():
        part = distances[distances.covariate == covariate]
        if part.distance.notna().any():
            panels.append(
                (name, _love(part, [s for s in settings if s in set(part.setting)], name))
            )
    if panels:
        caption = (
            f"Distance from the incompatible set, the mean over domains and seeds.{_unlike(frame)} "
            + ("Hollow: before matching; filled: after. " if matched else "")
            + "Letter and author: total variation; confidence and length: absolute standardized "
            "mean difference. To the left of the dashed line (0.1), sets count as balanced; an "
            "arrow marks a distance beyond the axis."
        )
        parts.append(figure(panels, caption, key(settings)))
    else:
        parts.append(
            paragraph("No distances: this run has no incompatible set for comparison.", "note")
        )
    return [*parts, details("Balance by domain", joined(_tables(frame, settings)))]


def _unlike(frame: pd.DataFrame) -> str:
    some = frame.groupby("setting").domain.nunique().min() < frame.domain.nunique()
    return " (n/m): over n of m domains." if some else ""


def _distances(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the mean absolute distance over domains and seeds by stage, setting, covariate."""
    once = frame.drop_duplicates(["domain", "seed", "stage", "setting", "covariate"])
    sized = once.assign(distance=pd.to_numeric(once.distance).abs())
    grouped = sized.groupby(["stage", "setting", "covariate"], sort=False)
    means = grouped.agg(distance=("distance", "mean"), domains=("domain", "nunique")).reset_index()
    return means.assign(of_domains=frame.domain.nunique())


def _labels(rows: pd.DataFrame, settings: Sequence[str]) -> list[str]:
    """Returns the settings' short names, with their number of domains if some lack one."""
    if "domains" not in rows:
        rows = rows.assign(
            domains=rows.groupby("setting").domain.transform("nunique"),
            of_domains=rows.domain.nunique(),
        )
        rows = rows.drop(columns="domain")
    first = rows.drop_duplicates("setting").set_index("setting")
    return [
        label({"setting": s, "domains": first.domains[s], "of_domains": first.of_domains[s]})
        for s in settings
    ]


def _letters(rows: pd.DataFrame, settings: list[str], levels: list[str], stage: str) -> Markup:
    present = [setting for setting in settings if (rows.setting == setting).any()]
    names = _labels(rows, present)
    about = f"Share of each option letter among the targets, {stage} matching, by setting"
    chart = Chart(
        Axis(0, 1, "share of the targets", percent=True),
        down(names),
        about,
        height=24 * len(names) + 60,
    )
    for index, setting in enumerate(present):
        part = rows[rows.setting == setting]
        # A letter without a row is the target of no example of that set.
        sets = part[["domain", "seed"]].drop_duplicates()
        left = 0.0
        for i, level in enumerate(levels):
            share = float(part[part.level == level].value.sum()) / len(sets)
            chart.bar(left, left + share, index, 0.74, _SHADES[i % len(_SHADES)], level)
            left += share
    return chart.svg()


def _love(rows: pd.DataFrame, settings: list[str], name: str) -> Markup:
    within = [value for value in rows.distance if value <= _FARTHEST]
    high = limits([*within, 0.12], 0)[1]
    chart = Chart(
        Axis(-0.03 * high, high, "distance"),
        down(_labels(rows, settings)),
        f"Balance of {name}",
        20 * len(settings) + 62,
    )
    chart.upright(0.1)
    for row in rows.to_dict("records"):
        index, color = settings.index(row["setting"]), colors.of(row["setting"])
        if row["distance"] > _FARTHEST:
            chart.text(high, index, f"{number(row['distance'], 1)} →", "end", over=-4)
        else:
            chart.point(
                row["distance"],
                index,
                color,
                hollow=row["stage"] == "before",
                size=4.4 if row["stage"] == "before" else 3.4,
            )
    return chart.svg()


def _tables(frame: pd.DataFrame, settings: list[str]) -> list[Markup]:
    keys = ["domain", "setting", "stage"]
    seeds = frame.groupby(keys).seed.nunique().to_dict()
    shares = frame.groupby([*keys, "covariate", "level"]).value.sum().to_dict()
    once = frame.drop_duplicates([*keys, "seed", "covariate"])
    distances = (
        pd.to_numeric(once.distance)
        .abs()
        .groupby([once[name] for name in (*keys, "covariate")])
        .mean()
        .to_dict()
    )
    out = []
    for domain, part in frame.groupby("domain", sort=False):
        levels = sorted({str(level) for level in part[part.covariate == "letter"].level})
        rows: list[dict[str, Any]] = []
        for cell in ((domain, setting, stage) for setting in settings for stage in STAGES):
            if cell not in seeds:
                continue
            row: dict[str, Any] = {"setting": setting_name(cell[1]), "stage": cell[2]}
            for covariate, name in COVARIATES.items():
                if (*cell, covariate, "mean") in shares:
                    mean = shares[*cell, covariate, "mean"] / seeds[cell]
                    row[f"{name}, mean"] = number(mean, 2 if covariate == "confidence" else 0)
                row[f"{name}, distance"] = number(distances.get((*cell, covariate)), 3)
            # A letter without a row is the target of no example of that set.
            has_letters = any((*cell, "letter", level) in shares for level in levels)
            for level in levels:
                share = shares.get((*cell, "letter", level), 0.0) / seeds[cell]
                row[f"{level}, %"] = points(share) if has_letters else None
            rows.append(row)
        missing = "no incompatible set for comparison, or no letters."
        out.append(table(rows, f"Balance: {domain}, mean over seeds", missing, heads=2))
    return out
