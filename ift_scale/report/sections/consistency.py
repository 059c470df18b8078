"""How much of the base model's ranking of options an arm keeps, and its relation to accuracy."""

from typing import Any

from markupsafe import Markup

from ift_scale.report import colors
from ift_scale.report.coverage import coverage_note, label, over, overall
from ift_scale.report.facts import Facts
from ift_scale.report.html import figure, joined, key, paragraph, table
from ift_scale.report.svg import SHAPES, Axis, Chart, across, limits
from ift_scale.report.text import absent, interval, number, p_value, reasons_of

MEASURES = {"consistency": "rank correlation with the base", "kl": "KL(base || arm), nats"}


def body(facts: Facts) -> Markup | None:
    probe, arms = facts.inputs.manifests.get("probe", []), facts["arms"]
    if not len(arms):
        return None
    masses = [number(m.counts.get("mean_letter_mass"), 3) for m in probe[:1]]
    text = (
        "Before: the base model, few-shot. After: the arm, without examples, in the training "
        "template."
    )
    if masses and arms.letter_mass.notna().any():
        text += (
            " Mean letter mass (the total probability of the option letters; if it is small, the "
            f"wrong token is read): base model {masses[0]}, arms "
            f"{number(arms.letter_mass.mean(), 3)}."
        )
    parts = [paragraph(text)]
    for name, about in (
        (
            "consistency",
            "Mean correlation of the options' ranks before and after (1: the same order; undefined "
            "correlations count as 0).",
        ),
        ("kl", "KL divergence of the option distributions, base || arm, in nats (0: the same)."),
    ):
        settings = overall(facts["settings"]).dropna(subset=[name])
        panels = [
            (group, _by_setting(facts, name, group))
            for group in facts.groups
            if (settings.group == group).any()
        ]
        if panels:
            parts.append(
                figure(
                    panels,
                    f"{about} Mean and {facts.level} interval, {facts.scope}."
                    f"{coverage_note(settings, name)}",
                )
            )
        else:
            parts.append(
                paragraph(
                    f"No {name}: {reasons_of(facts['settings'], 'it was not computed.')}", "note"
                )
            )
    if arms.consistency.notna().any():
        parts += [
            Markup("<h3>Consistency against accuracy</h3>"),
            _scatter(facts),
            _correlation(facts),
        ]
    return joined(parts)


def _by_setting(facts: Facts, name: str, group: str) -> Markup:
    frame = facts.ordered(overall(facts["settings"]))
    low, high = limits([value for end in ("", "_low", "_high") for value in frame[f"{name}{end}"]])
    rows = frame[frame.group == group].to_dict("records")
    if name == "kl":
        low = min(0.0, low)
    names = [label(row, name) for row in rows]
    chart = Chart(
        across(names), Axis(low, high, MEASURES[name]), f"{MEASURES[name]} on {group} by setting"
    )
    for index, row in enumerate(rows):
        color = colors.of(row["setting"])
        chart.interval(index, row[f"{name}_low"], row[f"{name}_high"], color)
        chart.point(index, row[name], color, hollow=bool(over(row, name)))
    return chart.svg()


def _scatter(facts: Facts) -> Markup:
    """Draws one point per domain and setting (a mean over seeds), or per arm without such rows."""
    points = facts["correlation_points"] if len(facts["correlation_points"]) else facts["arms"]
    domains = [domain for domain in facts.domains if (points.domain == domain).any()]
    shapes = {domain: SHAPES[i % len(SHAPES)] for i, domain in enumerate(domains)}
    panels = []
    for name, about in MEASURES.items():
        there = points.dropna(subset=[name])
        for group in [g for g in facts.groups if (there.group == g).any()]:
            part = there[there.group == group]
            x, y = (
                Axis(*limits(there[name]), about),
                Axis(*limits(there.accuracy, 0, 1), "accuracy", percent=True),
            )
            chart = Chart(x, y, f"Accuracy against {about} on {group}")
            for row in part.to_dict("records"):
                chart.point(
                    row[name],
                    row["accuracy"],
                    colors.of(row["setting"]),
                    shapes[row["domain"]],
                    3.4,
                )
            panels.append(
                (f"{group}: {'consistency' if name == 'consistency' else 'KL'}", chart.svg())
            )
    marks = {
        "circle": "●",
        "square": "■",
        "triangle": "▲",
        "diamond": "◆",
        "down": "▼",
        "pentagon": "⬟",
    }
    text = (
        Markup('<p class="note">{}</p>').format(
            "  ".join(f"{marks[shapes[d]]}\u00a0{d}" for d in domains)
        )
        if len(domains) > 1
        else ""
    )
    shown = [s for s in facts.settings if (points.setting == s).any()]
    caption = "Each point: a setting in a domain. Color: the setting; shape: the domain."
    return figure(panels, caption, joined([key(shown), text]))


def correlation_rows(facts: Facts) -> list[dict[str, Any]]:
    """Returns the table of correlations."""
    return [
        {
            "measure": row["measure"],
            "group": row["group"],
            "n": number(row["n"], 0),
            "partial rho": number(row["rho"], 2, sign=True),
            "p": p_value(row["p"]),
            "rho within domains": interval(
                row, "rho_within", share=False, sign=True, ends=("low", "high")
            ),
            "p within domains": p_value(row["p_within"]),
            "remark": "" if absent(row["reason"]) else row["reason"],
        }
        for row in facts["correlation"].to_dict("records")
    ]


def _correlation(facts: Facts) -> Markup:
    rows = correlation_rows(facts)
    if not rows:
        return paragraph(
            "No correlation: it requires three ratios between incompatible and self-aligning.",
            "note",
        )
    text = (
        "Rank correlations with accuracy. Partial rho, the paper's: over domains and ratios, "
        "controlling for the base model's accuracy; its p treats the points as independent. Rho "
        f"within domains: the mean of the correlations within each, with its {facts.level} "
        "interval over domains; its p is from permutations within each domain"
    )
    if not any(row["remark"] for row in rows):
        rows = [{name: value for name, value in row.items() if name != "remark"} for row in rows]
    return table(rows, text, "is undefined: see the remark.", heads=2)
