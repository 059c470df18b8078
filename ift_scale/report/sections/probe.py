"""How reliable the measurement of the base model's knowledge is."""

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ift_scale.records import LETTERS
from ift_scale.report.facts import Facts
from ift_scale.report.html import figure, folded, joined, legend, paragraph, table
from ift_scale.report.svg import Axis, Chart, across, limits
from ift_scale.report.text import points, setting_name
from ift_scale.treatments import BASE

NAMES = {
    "recall": ("recall", "#2a78c8"),
    "probability": ("mean probability over all rotations", "#d55e00"),
    "prior": ("prior (PriDe)", "#ae7c10"),
}


def body(facts: Facts) -> Markup | None:
    measures = facts.inputs.knowledge
    if not measures:
        return None
    parts = [
        paragraph(
            f"The probe, few-shot, on {measures['questions']:,} choice questions (all of the run)."
        ),
        paragraph(
            joined(
                [
                    "Further measures (option orders, letter prior, demonstration draws, grades, "
                    "likelihood of the option texts, free questions) are settings under ",
                    Markup("<code>probe.reliability</code> and <code>probe.free</code>."),
                ]
            ),
            "note",
        ),
        table(reliability(measures), "Reliability of the base model's knowledge"),
    ]
    panels = [("calibration", calibration(measures["calibration"]))]
    panels += [
        (f"letters, {num_choices} options", letters(int(num_choices), row))
        for num_choices, row in measures["letters"].items()
    ]
    shown = [name for name in NAMES if any(name in row for row in measures["letters"].values())]
    caption = (
        "Calibration: on the dotted line, a confidence of 0.7 is right in 70% of the cases; a "
        "circle's area is proportional to its number of questions. Letters: recall is the share of "
        "the questions with this right letter that are answered correctly; dotted: chance."
    )
    parts.append(figure(panels, caption, legend(NAMES[name][::-1] for name in shown)))
    return joined(parts)


def measures(facts: Facts) -> Markup | None:
    """Two measures of one model on the same questions, if option texts decide what it knows."""
    frame = facts["measures"]
    if not len(frame):
        return None
    rows = [
        {
            "model": "base, few-shot" if row["model"] == BASE else setting_name(row["model"]),
            "group": row["group"],
            "measures": f"{row['first']}, {row['second']}",
            "questions": f"{row['questions']:,.0f}",
            "first": points(row["first_accuracy"]),
            "second": points(row["second_accuracy"]),
            "kappa": "" if pd.isna(row["kappa"]) else f"{row['kappa']:.2f}",
        }
        for row in frame.to_dict("records")
    ]
    caption = (
        "Accuracy by two measures on the same questions, percent, and Cohen's kappa of being right:"
        " 0 as often as by chance, 1 always. cloze: the likelihood of the options' texts; free: the"
        " generated answer to the question without options. A setting's arms are pooled."
    )
    return folded(rows, caption, "cloze is off.", heads=3)


def reliability(measures: dict[str, Any]) -> list[dict[str, str]]:
    """Returns one row per available measure."""
    rows = [
        (
            "expected calibration error",
            f"{measures['ece']:.3f}",
            "mean distance between confidence and accuracy, ten bins",
        ),
        (
            "Brier score",
            f"{measures['brier']:.3f}",
            "squared distance between probabilities and truth, 0 to 2",
        ),
    ]
    for num_choices, row in measures["letters"].items():
        about = f"{num_choices} options"
        rows.append(
            (
                f"spread of recall, {about}",
                f"{row['recall_std']:.3f}",
                "standard deviation over the right answer's letter",
            )
        )
        if "letter_bias" in row:
            rows.append(
                (
                    f"letter bias, {about}",
                    f"{row['letter_bias']:.3f}",
                    "preference for letters as such: 0 none, at most 1 − 1/options",
                )
            )
    if "views" in measures:
        rows.append(
            (
                "agreement between views",
                f"{measures['views']['agreement']:.3f}",
                "share of orders and draws with the same prediction",
            )
        )
    if "cloze" in measures:
        for name, found in measures["cloze"]["scores"].items():
            used = ", used" if name == measures["cloze"]["score"] else ""
            rows.append(
                (
                    f"accuracy by the options' texts, {name}{used}",
                    f"{found['accuracy']:.3f}",
                    f"negative log-likelihood {found['nll']:.3f} nats, calibration error "
                    f"{found['ece']:.3f}",
                )
            )
        rows.append(
            (
                "agreement between text and letter",
                f"{measures['cloze']['agreement']:.3f}",
                "share of questions",
            )
        )
    for name, grades in (
        ("choice", measures.get("grades")),
        ("free", measures.get("free", {}).get("grades")),
    ):
        rows += [
            (f"{grade}, {name} questions", f"{count:,}", "SliCK's grade")
            for grade, count in (grades or {}).items()
        ]
    if "free" in measures:
        rows.append(
            (
                "exact match, free questions",
                f"{measures['free']['exact_match']:.3f}",
                f"of {measures['free']['questions']:,}",
            )
        )
        rows.append(
            ("F1, free questions", f"{measures['free']['f1']:.3f}", "over tokens, best alias")
        )
    return [dict(zip(("measure", "value", "what it is"), row, strict=True)) for row in rows]


def calibration(bins: list[dict[str, float]]) -> Markup:
    """Draws accuracy by confidence; a circle's area is the share of the questions in its bin."""
    chart = Chart(
        Axis(0, 1.03, "confidence"),
        Axis(0, 1.03, "accuracy"),
        "Accuracy of the base model by its confidence",
        height=240,
    )
    chart.line([0, 1], [0, 1], "currentColor", "dotted")
    total = sum(b["questions"] for b in bins)
    chart.line([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "#2a78c8")
    for b in bins:
        chart.point(
            b["confidence"],
            b["accuracy"],
            "#2a78c8",
            size=2 + 11 * float(np.sqrt(b["questions"] / total)),
        )
    return chart.svg()


def letters(num_choices: int, row: dict[str, list[float | None]]) -> Markup:
    """Draws recall by option letter, and the letters' bias if it was measured."""
    shown = [name for name in NAMES if name in row]
    values = {name: [float("nan") if v is None else v for v in row[name]] for name in shown}
    high = limits([v for name in shown for v in values[name]], 0, 1)[1]
    chart = Chart(
        across(LETTERS[:num_choices]),
        Axis(0, high),
        f"Recall by letter, {num_choices} options",
        height=240,
    )
    chart.level(1 / num_choices, "dotted")
    for index, name in enumerate(shown):
        offset = (index - (len(shown) - 1) / 2) * 0.22
        for letter, value in enumerate(values[name]):
            chart.line([letter + offset] * 2, [0, value], NAMES[name][1], "interval")
            chart.point(letter + offset, value, NAMES[name][1])
    return chart.svg()
