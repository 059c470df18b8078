"""A study's page: its variants side by side, from their own tables, with links to their reports."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.config import Config
from ift_scale.io import integrity
from ift_scale.io.files import atomic_folder
from ift_scale.io.manifests import read_manifest
from ift_scale.io.tables import write_csv
from ift_scale.report.coverage import over, overall
from ift_scale.report.document import HEADING, document
from ift_scale.report.facts import read
from ift_scale.report.html import figure, folded, joined, legend, paragraph, table
from ift_scale.report.run import PAGE
from ift_scale.report.sections import dose
from ift_scale.report.sections.appendix import downloads
from ift_scale.report.sections.differences import pair
from ift_scale.report.svg import SHAPES, Axis, Chart, down, limits
from ift_scale.report.text import absent, interval, setting_name

FOLDER = "report"
COLORS = ("#2a78c8", "#d55e00", "#008f68", "#c2569a", "#ae7c10", "#8a63d2")
TABLES = tuple(
    "settings comparisons best_ratio correlation format_content forgetting_fit learnt hidden "
    "dose".split()
)
"""The tables that the study's folder has with the rows of all variants."""
_MISSING = (
    "this variant has no such settings, or the value is undefined: see the variant's own report."
)


def run(study: Config, variants: Mapping[str, Config]) -> Path:
    """Writes the study's report folder from those of its finished variants; returns the page."""
    folder = Path(study.output_dir) / FOLDER
    for config in variants.values():
        integrity.check(Path(config.output_dir) / FOLDER, ("*.csv",))
    by_variant = {
        name: {t: read(Path(c.output_dir) / FOLDER / f"{t}.csv", t) for t in TABLES}
        for name, c in variants.items()
    }
    with atomic_folder(folder) as temporary:
        for name in TABLES:
            whole = [
                tables[name].assign(variant=variant)
                for variant, tables in by_variant.items()
                if len(tables[name])
            ]
            if whole:
                rows = pd.concat(whole)
                ordered = rows[["variant", *(c for c in rows if c != "variant")]]
                write_csv(ordered, temporary / f"{name}.csv")
        files = sorted(path.name for path in temporary.iterdir())
        (temporary / PAGE).write_text(page(study, variants, by_variant, files), encoding="utf-8")
    return folder / PAGE


def page(
    study: Config,
    variants: Mapping[str, Config],
    by_variant: Mapping[str, Mapping[str, pd.DataFrame]],
    files: list[str],
) -> str:
    level = f"{study.analyse.confidence_level * 100:g}%"
    sections = [
        ("variants", "The variants", _variants(study, variants)),
        *_tables(by_variant, level),
        *_pareto(by_variant, level),
    ]
    sections.append(("downloads", "The same numbers as files", downloads(files)))
    title = Path(study.output_dir).name
    subtitle = f"{title}: {len(variants)} variants of a study of {study.model.path}"
    return document(f"{title}: {HEADING}", HEADING, subtitle, sections)


def changes(study: Config, variant: Config) -> list[str]:
    """Returns a variant's settings that differ from the study's, as `section.name: value`."""
    base, own = _flat(study.model_dump()), _flat(variant.model_dump())
    return [
        f"{key}: {value}"
        for key, value in own.items()
        if base.get(key) != value and key != "output_dir"
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return out


def _variants(study: Config, variants: Mapping[str, Config]) -> Markup:
    items = []
    for name, config in variants.items():
        link = os.path.relpath(
            Path(config.output_dir) / FOLDER / PAGE, Path(study.output_dir) / FOLDER
        )
        changed = "; ".join(changes(study, config)) or "the study's own settings"
        items.append(Markup('<li><a href="{}">{}</a>: {}</li>').format(link, name, changed))
    sizes = [_sizes(name, Path(config.output_dir)) for name, config in variants.items()]
    shown = (
        table(sizes, "Questions in each set", "this variant has no sets of that domain.")
        if any(len(s) > 1 for s in sizes)
        else ""
    )
    text = (
        "The variants differ in these settings. Each has its own report. Sets of different sizes "
        "are trained for different numbers of steps, so compare a setting with the others of its "
        "variant."
    )
    return joined([paragraph(text), Markup("<ul>{}</ul>").format(joined(items)), shown])


def _sizes(name: str, folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder / "construct")
    counts = manifest.counts if manifest is not None else {}
    sizes = {
        key.removesuffix("/set_size"): f"{value:,.0f}"
        for key, value in counts.items()
        if key.endswith("/set_size")
    }
    return {"variant": name} | sizes


def _tables(
    by_variant: Mapping[str, Mapping[str, pd.DataFrame]], level: str
) -> list[tuple[str, str, Markup]]:
    tables = (
        (
            "accuracy",
            "Accuracy",
            "settings",
            f"Accuracy in percent with {level} intervals",
            _accuracy,
        ),
        (
            "differences",
            "Differences between settings",
            "comparisons",
            f"Percentage points with {level} intervals",
            _difference,
        ),
        (
            "ratios",
            "The best mixture against ratio 1",
            "best_ratio",
            f"Best ratio, and the best below 1 against ratio 1: points with {level} intervals",
            _best,
        ),
        (
            "correlation",
            "Consistency and KL against accuracy",
            "correlation",
            f"Mean rank correlation within domains, {level} intervals",
            _rho,
        ),
    )
    out = []
    for id, title, name, caption, cells in tables:
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for variant, of_variant in by_variant.items():
            whole = of_variant[name] if name == "correlation" else overall(of_variant[name])
            for row in whole.to_dict("records"):
                names, value = cells(row)
                rows.setdefault(tuple(names.values()), dict(names))[variant] = value
        if rows:
            filled = [
                row | {variant: row.get(variant) for variant in by_variant} for row in rows.values()
            ]
            shown = folded(filled, caption, _MISSING, heads=len(names), most=40)
            drawn = _forests(by_variant, level) if name == "comparisons" else ""
            out.append((id, title, joined([drawn, shown])))
    return out


def _forests(by_variant: Mapping[str, Mapping[str, pd.DataFrame]], level: str) -> Markup:
    """Draws one panel per group, one line per pair, one point per variant."""
    tables = {
        variant: overall(of_variant["comparisons"]) for variant, of_variant in by_variant.items()
    }
    every = pd.concat(tables.values())
    color = {variant: COLORS[i % len(COLORS)] for i, variant in enumerate(tables)}
    low, high = limits([*every.difference_low, *every.difference_high, 0.0])
    panels = []
    for group in dict.fromkeys(every.group):
        pairs = list(
            dict.fromkeys(pair(row) for row in every[every.group == group].to_dict("records"))
        )
        axis = Axis(low, high, "difference of accuracy", percent=True)
        chart = Chart(
            axis,
            down(pairs),
            f"Differences on {group} by variant",
            height=(10 + 12 * len(tables)) * len(pairs) + 62,
        )
        chart.upright(0)
        for number, (variant, rows) in enumerate(tables.items()):
            for row in rows[rows.group == group].to_dict("records"):
                y = pairs.index(pair(row)) + 0.7 * ((number + 0.5) / len(tables) - 0.5)
                chart.span(y, row["difference_low"], row["difference_high"], color[variant])
                chart.point(
                    row["difference"],
                    y,
                    color[variant],
                    SHAPES[number % len(SHAPES)],
                    3.4,
                    hollow=bool(over(row)),
                )
        panels.append((group, chart.svg()))
    caption = (
        f"Mean and {level} interval; to the right of the dashed line the first setting is better."
    )
    if any(over(row) for row in every.to_dict("records")):
        caption += " Hollow: over fewer domains than the variant has (see the table)."
    return figure(panels, caption, legend((color[variant], variant) for variant in tables))


def _pareto(
    by_variant: Mapping[str, Mapping[str, pd.DataFrame]], level: str
) -> list[tuple[str, str, Markup]]:
    """Draws what the settings of all variants acquired and forgot; a color for each variant."""
    tables = {variant: overall(of_variant["dose"]) for variant, of_variant in by_variant.items()}
    drawn = []
    for number, (variant, frame) in enumerate(tables.items()):
        frame = frame.dropna(subset=list(dose.MEASURES))
        mark = (COLORS[number % len(COLORS)], SHAPES[number % len(SHAPES)])
        if len(frame):
            drawn.append((variant, frame, mark))
    if sum(len(frame) for _, frame, _ in drawn) < 2:
        return []
    chart = dose.pareto([(frame, dict.fromkeys(frame.setting, mark)) for _, frame, mark in drawn])
    caption = (
        f"All settings of each variant; crosses: {level} intervals. Up and left is better. Ringed: "
        "no other acquired at least as much and forgot less. Each variant's report names them."
    )
    names = legend((mark[0], variant) for variant, _, mark in drawn)
    section = figure([("Acquired and forgotten", chart)], caption, names)
    return [("dose", "Acquired and forgotten", section)]


Cells = tuple[dict[str, str], str]


def _accuracy(row: dict[str, Any]) -> Cells:
    return {"setting": setting_name(row["setting"]), "group": row["group"]}, interval(
        row, "accuracy"
    )


def _difference(row: dict[str, Any]) -> Cells:
    return {"difference of": pair(row), "group": row["group"]}, interval(
        row, "difference", sign=True
    )


def _best(row: dict[str, Any]) -> Cells:
    text = " ".join(filter(None, [f"best {row['best_ratio']:g}", over(row)]))
    if not absent(row["difference"]):
        difference = interval(row, "difference", sign=True, ends=("low", "high"))
        text += f"; {row['best_other']:g} compared with 1: {difference}"
    return {"group": row["group"]}, text


def _rho(row: dict[str, Any]) -> Cells:
    return {"measure": row["measure"], "group": row["group"]}, interval(
        row, "rho_within", share=False, sign=True, ends=("low", "high")
    )
