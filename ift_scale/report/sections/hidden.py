"""What linear probes decode from hidden states, by layer, and whether lost answers are hidden."""

from typing import Any

import pandas as pd
from markupsafe import Markup

from ift_scale.report import colors
from ift_scale.report.coverage import overall
from ift_scale.report.facts import Facts
from ift_scale.report.html import figure, folded, joined, legend, no_interval_note, paragraph
from ift_scale.report.svg import Axis, Chart
from ift_scale.report.text import interval, number, points, reasons_of, setting_name
from ift_scale.treatments import BASE

_BASE_COLOR = "#6a6a74"


def body(facts: Facts) -> Markup | None:
    frame = facts["hidden"]
    if not len(frame):
        return None
    whole = _base_first(facts, overall(frame))
    by_layer = _base_first(facts, overall(facts["hidden_layers"]))
    text = (
        "A question is decodable if a linear probe of one layer's states, fitted on train "
        "questions that no arm of the domain was trained on, ranks its right option first. It is "
        "hidden if it is decodable and the model answers it wrongly. Selectivity is the probe's "
        "accuracy minus that on a control task of random labels. The base model's states are those "
        "of the few-shot prompt, an arm's those of the 0-shot prompt in which it is evaluated."
    )
    names = {
        "decodable": "Linear probe",
        "lens": "Logit lens (final norm and head)",
        "selectivity": "Selectivity of the probe",
    }
    panels = [
        (title, _curves(by_layer, name))
        for name, title in names.items()
        if by_layer[name].notna().any()
    ]
    entries = [(_color(s), _name(s)) for s in dict.fromkeys(by_layer.setting)]
    caption = (
        f"By layer on the pools' test questions, {facts.scope}; layer 0 is the embedding. "
        f"Bands: {facts.level} intervals."
    )
    lost = (
        "Lost: answered correctly by the base model and wrongly by the arm. A lost question that "
        "is still decodable is hidden, otherwise it is gone. Compare the share with that of the "
        "questions that neither model answers: a probe decodes some of those too."
    )
    parts = [
        paragraph(text),
        figure(panels, caption, legend(entries)),
        folded(
            [_decoded(row) for row in whole.to_dict("records")],
            f"Decodable and expressed at each model's best layer, percent: {facts.scope}",
            reasons_of(whole, "the measure compares an arm with the base model."),
        ),
    ]
    arms = whole[whole.setting != BASE]
    if len(arms):
        shown = folded(
            [_lost(row) for row in arms.to_dict("records")],
            f"Lost questions: share that is decodable, percent: {facts.scope}",
            reasons_of(arms, "there is no such question."),
        )
        parts += [paragraph(lost), shown]
    return joined([*parts, no_interval_note(whole, "lost_decodable")])


def _base_first(facts: Facts, frame: pd.DataFrame) -> pd.DataFrame:
    arms = frame[frame.setting != BASE].assign(group="HOMO")
    return pd.concat([frame[frame.setting == BASE], facts.ordered(arms)])


def _name(setting: str) -> str:
    return "base model" if setting == BASE else setting_name(setting)


def _color(setting: str) -> str:
    return _BASE_COLOR if setting == BASE else colors.of(setting)


def _curves(frame: pd.DataFrame, name: str) -> Markup:
    values = [*frame[name], *frame.get(f"{name}_low", []), *frame.get(f"{name}_high", [])]
    least = min([0.0, *(v for v in values if v == v)])
    layers = sorted(set(frame.layer))
    marks = [(float(n), str(int(n))) for n in layers] if len(layers) <= 12 else None
    chart = Chart(
        Axis(-0.2, max(layers) + 0.2, "layer", marks=marks),
        Axis(least, 1, "selectivity" if name == "selectivity" else "accuracy", percent=True),
        f"{name} by layer",
    )
    for setting in dict.fromkeys(frame.setting):
        rows = frame[frame.setting == setting].sort_values("layer")
        if f"{name}_low" in rows:
            low, high = rows[f"{name}_low"].to_list(), rows[f"{name}_high"].to_list()
            chart.band(rows.layer.to_list(), low, high, _color(setting))
        chart.line(rows.layer, rows[name], _color(setting))
    return chart.svg()


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": _name(row["setting"]),
        "best layer": f"{number(row['best_layer'], 1)} of {number(row['layers'], 0)}",
        "decodable": interval(row, "decodable"),
        "after less before": interval(row, "change", sign=True),
        "selectivity": interval(row, "selectivity", sign=True),
        "expressed": interval(row, "expressed"),
        "hidden": interval(row, "hidden"),
        "expressed, not decodable": interval(row, "unread"),
        "layer of the decision": number(row["decision"], 1),
    }


def _lost(row: dict[str, Any]) -> dict[str, Any]:
    gone = None if pd.isna(row["lost_decodable"]) else 1 - row["lost_decodable"]
    return {
        "setting": _name(row["setting"]),
        "answers lost": number(row["lost_questions"], 0),
        "decodable before": interval(row, "lost_before"),
        "decodable after (hidden)": interval(row, "lost_decodable"),
        "not decodable (gone)": points(gone),
        "for comparison: answered by neither": interval(row, "unknown_decodable"),
    }
