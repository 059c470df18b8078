"""format_content.csv: the change from the base model few-shot to an arm 0-shot, in two parts.

*Format* is the change from the few-shot to the 0-shot prompt, of the base model. *Content* is the
change from the base model to the arm, both with the 0-shot prompt, and *content few-shot* that with
the few-shot prompt, if the arms were asked so (`evaluate.few_shot`). Format and content add up to
the total change of accuracy, which is the paper's comparison; not so for the other measures.

Needs the base model's 0-shot answers (`evaluate.base`).
"""

from typing import Any

import pandas as pd

from ift_scale.analyse.answers import Answers, compare
from ift_scale.analyse.intervals import (
    CORRELATION,
    DIFFERENCE,
    SHARE,
    UNBOUNDED,
    Measure,
    mean_columns,
)
from ift_scale.analyse.panel import NO_OPTIONS, Panel, Panels, num_questions

PARTS = ("format", "content", "total", "content_few_shot")
_COMPARED: dict[str, Measure] = {
    "consistency": CORRELATION,
    "kl": UNBOUNDED,
    "agreement": SHARE,
}
MEASURES: dict[str, Measure] = {
    f"{part}_{name}": measure
    for name, measure in {"change": DIFFERENCE, **_COMPARED}.items()
    for part in PARTS
}
ACCURACIES = ("few_shot_accuracy", "zero_shot_accuracy", "accuracy")
"""Of the base model few-shot and 0-shot, and of the arm 0-shot."""


def parts_of(
    few_shot: Answers, zero_shot: Answers, after: Answers, after_few_shot: Answers | None = None
) -> pd.DataFrame:
    """Returns the measures of Q questions, which all sides have in the same order.

    The columns of MEASURES and both accuracies of the base model, NaN if undefined for a question.
    `few_shot` and `zero_shot` are the base model's answers, `after` an arm's, 0-shot, and
    `after_few_shot` an arm's few-shot; without them, their part is left out.
    """
    pairs = {
        "format": (few_shot, zero_shot),
        "content": (zero_shot, after),
        "total": (few_shot, after),
    }
    if after_few_shot is not None:
        pairs["content_few_shot"] = (few_shot, after_few_shot)
    values: dict[str, Any] = {}
    for part, (first, second) in pairs.items():
        values[f"{part}_change"] = second.columns.correct - first.columns.correct
        values |= {f"{part}_{name}": compare(first, second)[name] for name in _COMPARED}
    values["few_shot_accuracy"] = few_shot.columns.correct
    values["zero_shot_accuracy"] = zero_shot.columns.correct
    return pd.DataFrame(values, index=after.columns.index)


def format_content_table(panels: Panels, level: float) -> pd.DataFrame:
    """Returns one row per setting, domain (and all of them) and group: means with intervals.

    The part `format` does not depend on the setting. With one seed, intervals are over questions.
    """
    rows = []
    for setting in panels.settings:
        for name, group, chosen in panels.cells(setting):
            row = {"setting": setting, "domain": name, "group": group, **panels.coverage(chosen)}
            row["seeds"] = min(len(panel.seeds(setting)) for panel in chosen)
            row["questions"] = num_questions(chosen)
            rows.append(row | _means(panels, chosen, setting, level))
    return pd.DataFrame(rows)


def _means(panels: Panels, chosen: list[Panel], setting: str, level: float) -> dict[str, Any]:
    row: dict[str, Any] = {}
    reasons = []
    for name in ACCURACIES:
        row |= mean_columns(name, panels.estimate(chosen, setting, name, SHARE), level)
    for name, measure in MEASURES.items():
        if name not in chosen[0].values:
            continue
        made = panels.estimate(chosen, setting, name, measure)
        row |= mean_columns(name, made, level)
        reasons.append(NO_OPTIONS if made is None else made.missing_over_questions)
    return row | {"reason": "; ".join(dict.fromkeys(filter(None, reasons)))}
