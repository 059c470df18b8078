"""The sets: what the base model knows of each pool, and how far the sets differ in what should not differ."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.config import MatchingConfig
from ift_scale.knowledge import smaller_than_batch
from ift_scale.report import colors
from ift_scale.report.coverage import label
from ift_scale.report.facts import Facts
from ift_scale.report.html import (
    details,
    figure,
    folded,
    joined,
    key,
    name_of,
    number,
    paragraph,
    points,
    table,
)
from ift_scale.report.svg import Axis, Chart, down, limits
from ift_scale.treatments import in_order

STAGES = ("before", "after")
COVARIATES = {
    "letter": "target letter",
    "author": "author",
    "confidence": "confidence",
    "length": "length",
}
_FARTHEST = 2.0
"""Distances beyond it are told in figures: one would press all others together."""
_SHADES = ("#1f4e79", "#2a78c8", "#5ba3dd", "#a5cdf0", "#c8a2d8", "#a06ab4", "#704784", "#80808a")


def knowledge(facts: Facts) -> list[dict[str, Any]]:
    columns = ("known_right", "known_wrong", "uncertain", "near_threshold", "set_size")
    counts = {
        key: value
        for m in facts.sources.manifests.get("construct", [])
        for key, value in m.counts.items()
    }
    domains = dict.fromkeys(name.split("/")[0] for name in counts if name.endswith("/set_size"))
    return [
        {"domain": d} | {c.replace("_", " "): number(counts.get(f"{d}/{c}"), 0) for c in columns}
        for d in domains
    ]


def body(facts: Facts) -> Markup | None:
    parts: list[Markup] = []
    if rows := knowledge(facts):
        text = (
            "What the base model knows of each pool's train questions, and the size of every set. \u201cNear the "
            "threshold\u201d counts "
            "questions that rounding could move."
        )
        parts += [
            paragraph(text),
            table(rows, "Questions of the pools and sets", "was not counted."),
        ]
    parts += [paragraph(text, "caution") for text in _small(facts)]
    parts += _texts(facts)
    parts += _duplicates(facts.sources.audit)
    parts += _balance(facts)
    return joined(parts) if parts else None


def _small(facts: Facts) -> list[str]:
    """Domains whose sets, general instructions included, are smaller than an optimizer step."""
    general = facts.config.construct.general
    share = general.share if general.path else 0.0
    counts = {
        key: value
        for m in facts.sources.manifests.get("construct", [])
        for key, value in m.counts.items()
    }
    there = [(arm, counts.get(f"{arm.domain}/set_size")) for arm in facts.sources.arms]
    sizes = {
        arm: round(size) + round(size * share / (1 - share))
        for arm, size in there
        if size is not None
    }
    return smaller_than_batch(sizes, facts.config.train.global_batch_size)


def _texts(facts: Facts) -> list[Markup]:
    """Who wrote explanations and contexts, and what their checks found."""
    counts = {
        key: value
        for m in facts.sources.manifests.get("write", [])
        for key, value in m.counts.items()
    }
    kinds = [key for key in counts if key.count("/") == 1]
    if not kinds:
        return []
    reasons = list(dict.fromkeys(key.split("/")[2] for key in counts if key.count("/") == 2))
    rows = [
        {
            "text": kind.split("/")[0],
            "author": kind.split("/")[1].replace("_", " "),
            "texts": number(counts[kind], 0),
        }
        | {reason: number(counts.get(f"{kind}/{reason}", 0), 0) for reason in reasons}
        for kind in kinds
    ]
    fate = {
        "drop": "their questions go into no set",
        "keep": "they are kept",
        "error": "they would have ended the run",
    }
    text = f"The columns behind the number of texts count those that fail a check; {fate[facts.config.write.on_failure]}."
    if not reasons:
        text = "No text of the sets fails a check."
    anew = counts.get("written_anew", 0)
    text += f" {anew:,.0f} were written more than once." if anew else ""
    return [paragraph(text), table(rows, "Explanations and contexts", heads=2)]


def _duplicates(audit: dict[str, Any]) -> list[Markup]:
    """What the questions stage found where it looked for questions that stand twice."""
    if "duplicates" not in audit:
        return []
    columns = {
        "exact_items": "exact",
        "near_items": "near",
        "same_text_items": "same text, other options",
    }
    rows = [
        {
            "of": found["cell"],
            "also in": found["in"],
            "questions": f"{found['items']:,} of {found['of']:,}",
        }
        | {name: number(found.get(key), 0) for key, name in columns.items()}
        for found in audit["duplicates"]
    ]
    if not rows:
        return [paragraph("No question stands both in what is trained on and in what is asked.")]
    return [
        folded(
            rows, "Questions that stand twice, exactly or nearly", "was not looked for.", heads=2
        )
    ]


def _balance(facts: Facts) -> list[Markup]:
    found = facts["balance"]
    if not len(found):
        return []
    settings = in_order(list(dict.fromkeys(found.setting)))
    stages = [stage for stage in STAGES if (found.stage == stage).any()]
    matched = facts.config.construct.matching != MatchingConfig()
    if not matched:
        stages, found = stages[-1:], found[found.stage == stages[-1]]
    intro = (
        "Sets should differ in nothing but their agreement with the model. What is seen here and is no knowledge could pass "
        "for it: a "
        "letter that one set prefers, surer questions, longer responses, another author. "
        + (
            "Before: as they come; after: as they were trained on, matched."
            if matched
            else "This run matches nothing of it."
        )
    )
    parts = [Markup("<h3>Balance of the sets</h3>"), paragraph(intro)]
    letters = found[found.covariate == "letter"]
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
                f"Letters of the option that is taught: mean share over domains and seeds.{_unlike(found)}",
            )
        )
    distances = _distances(found)
    panels = []
    for covariate, name in COVARIATES.items():
        part = distances[distances.covariate == covariate]
        if part.distance.notna().any():
            panels.append(
                (name, _love(part, [s for s in settings if s in set(part.setting)], name))
            )
    if panels:
        caption = (
            f"Distance from the incompatible set, the mean over domains and seeds.{_unlike(found)} "
            + ("Hollow: before matching; filled: after. " if matched else "")
            + "Letter and author: total variation; confidence and length: standardized mean difference, without its sign. Left of "
            "the dashed line (0.1) sets pass for balanced; an arrow tells a distance that lies beyond the axis."
        )
        parts.append(figure(panels, caption, key(settings)))
    else:
        parts.append(
            paragraph(
                "No distances: this run has no incompatible set to measure them from.", "note"
            )
        )
    return [*parts, details("Balance by domain", joined(_tables(found, settings)))]


def _unlike(found: pd.DataFrame) -> str:
    some = found.groupby("setting").domain.nunique().min() < found.domain.nunique()
    return " (n/m): over n of m domains." if some else ""


def _distances(found: pd.DataFrame) -> pd.DataFrame:
    """One row a stage, setting and covariate: the mean absolute distance over domains and seeds."""
    once = found.drop_duplicates(["domain", "seed", "stage", "setting", "covariate"])
    sized = once.assign(distance=pd.to_numeric(once.distance).abs())
    grouped = sized.groupby(["stage", "setting", "covariate"], sort=False)
    means = grouped.agg(distance=("distance", "mean"), domains=("domain", "nunique")).reset_index()
    return means.assign(of_domains=found.domain.nunique())


def _labels(rows: pd.DataFrame, settings: Sequence[str]) -> list[str]:
    """The settings' short names, with their number of domains where some lack one."""
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
    there = [setting for setting in settings if (rows.setting == setting).any()]
    names = _labels(rows, there)
    about = f"Share of each option letter among the targets, {stage} matching, by setting"
    chart = Chart(
        Axis(0, 1, "share of the targets", percent=True),
        down(names),
        about,
        height=24 * len(names) + 60,
    )
    for place, setting in enumerate(there):
        part = rows[rows.setting == setting]
        # A letter without a row is one that no target of that set has.
        sets = part[["domain", "seed"]].drop_duplicates()
        left = 0.0
        for i, level in enumerate(levels):
            share = float(part[part.level == level].value.sum()) / len(sets)
            chart.bar(left, left + share, place, 0.74, _SHADES[i % len(_SHADES)], level)
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
        place, color = settings.index(row["setting"]), colors.of(row["setting"])
        if row["distance"] > _FARTHEST:
            chart.text(high, place, f"{number(row['distance'], 1)} →", "end", over=-4)
        else:
            chart.point(
                row["distance"],
                place,
                color,
                hollow=row["stage"] == "before",
                size=4.4 if row["stage"] == "before" else 3.4,
            )
    return chart.svg()


def _tables(found: pd.DataFrame, settings: list[str]) -> list[Markup]:
    where = ["domain", "setting", "stage"]
    seeds = found.groupby(where).seed.nunique().to_dict()
    shares = found.groupby([*where, "covariate", "level"]).value.sum().to_dict()
    once = found.drop_duplicates([*where, "seed", "covariate"])
    distances = (
        pd.to_numeric(once.distance)
        .abs()
        .groupby([once[name] for name in (*where, "covariate")])
        .mean()
        .to_dict()
    )
    out = []
    for domain, part in found.groupby("domain", sort=False):
        levels = sorted({str(level) for level in part[part.covariate == "letter"].level})
        rows: list[dict[str, Any]] = []
        for place in ((domain, setting, stage) for setting in settings for stage in STAGES):
            if place not in seeds:
                continue
            row: dict[str, Any] = {"setting": name_of(place[1]), "stage": place[2]}
            for covariate, name in COVARIATES.items():
                if (*place, covariate, "mean") in shares:
                    mean = shares[*place, covariate, "mean"] / seeds[place]
                    row[f"{name}, mean"] = number(mean, 2 if covariate == "confidence" else 0)
                row[f"{name}, distance"] = number(distances.get((*place, covariate)), 3)
            # A letter without a row is one that no target of that set has.
            there = any((*place, "letter", level) in shares for level in levels)
            for level in levels:
                row[f"{level}, %"] = (
                    points(shares.get((*place, "letter", level), 0.0) / seeds[place])
                    if there
                    else None
                )
            rows.append(row)
        missing = "there is no incompatible set to measure from, or there are no letters."
        out.append(table(rows, f"Balance: {domain}, mean over seeds", missing, heads=2))
    return out
