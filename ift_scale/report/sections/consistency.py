"""How much of the base model's ranking an arm keeps, and how well it answers."""

from markupsafe import Markup

from ift_scale.report import colors
from ift_scale.report.coverage import explained, label, over
from ift_scale.report.facts import Facts, overall
from ift_scale.report.html import (
    absent,
    figure,
    interval,
    joined,
    key,
    number,
    p_value,
    paragraph,
    table,
    why,
)
from ift_scale.report.svg import SHAPES, Axis, Chart, across, limits

MEASURES = {"consistency": "rank correlation with the base", "kl": "KL(base || arm), nats"}


def body(facts: Facts) -> Markup | None:
    probe, arms = facts.sources.manifests.get("probe", []), facts["arms"]
    if not len(arms):
        return None
    masses = [number(m.counts.get("mean_letter_mass"), 3) for m in probe[:1]]
    text = "Before: the base model, few-shot. After: the arm, without examples, in the training template."
    if masses and arms.letter_mass.notna().any():
        text += (
            " Mean letter mass (the probability that the option letters hold together; a small one means that a wrong token is "
            f"read): base model {masses[0]}, arms {number(arms.letter_mass.mean(), 3)}."
        )
    parts = [paragraph(text)]
    for name, about in (
        (
            "consistency",
            "Mean correlation of the options' ranks before and after (1: the same order; undefined counts 0).",
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
                    f"{about} Mean and {facts.level} interval, {facts.place}.{explained(settings, name)}",
                )
            )
        else:
            parts.append(
                paragraph(f"No {name}: {why(facts['settings'], 'it was not computed.')}", "note")
            )
    if arms.consistency.notna().any():
        parts += [
            Markup("<h3>Consistency against accuracy</h3>"),
            _scatter(facts),
            _correlation(facts),
        ]
    return joined(parts)


def _by_setting(facts: Facts, name: str, group: str) -> Markup:
    found = facts.ordered(overall(facts["settings"]))
    low, high = limits([value for end in ("", "_low", "_high") for value in found[f"{name}{end}"]])
    rows = found[found.group == group].to_dict("records")
    if name == "kl":
        low = min(0.0, low)
    names = [label(row, name) for row in rows]
    chart = Chart(
        across(names), Axis(low, high, MEASURES[name]), f"{MEASURES[name]} on {group} by setting"
    )
    for place, row in enumerate(rows):
        color = colors.of(row["setting"])
        chart.interval(place, row[f"{name}_low"], row[f"{name}_high"], color)
        chart.point(place, row[name], color, hollow=bool(over(row, name)))
    return chart.svg()


def _scatter(facts: Facts) -> Markup:
    """A point a domain and setting (a mean over seeds); where there are no such rows, a point an arm."""
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
    caption = "Each point: a setting in a domain. Colour: the setting; shape: the domain."
    return figure(panels, caption, joined([key(shown), text]))


def _correlation(facts: Facts) -> Markup:
    rows = [
        {
            "measure": row["measure"],
            "group": row["group"],
            "n": number(row["n"], 0),
            "partial rho": interval(row, "rho", share=False, sign=True, ends=("low", "high")),
            "p": p_value(row["p"]),
            "p within domains": p_value(row["p_within"]),
            "remark": "" if absent(row["reason"]) else row["reason"],
        }
        for row in facts["correlation"].to_dict("records")
    ]
    if not rows:
        return paragraph(
            "No correlation: it needs three ratios between incompatible and self-aligning.", "note"
        )
    text = (
        "Spearman's partial correlation with accuracy, the base model's accuracy held fixed, over domains and ratios, with "
        f"{facts.level} intervals over domains. p takes the points for independent; p within domains permutes them in each"
    )
    if not any(row["remark"] for row in rows):
        rows = [{name: value for name, value in row.items() if name != "remark"} for row in rows]
    return table(rows, text, "is not defined: see the remark.", heads=2)
