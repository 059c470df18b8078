"""dose.csv: what each arm acquired in its own domain, and what it forgot in the others.

Acquired: accuracy on the held-out questions of the arm's own domains (HOMO) minus the base model's.
Forgotten: the base model's accuracy on the benchmarks of other domains (OOD) minus the arm's. Both
are paired by question. The arm answers 0-shot. The base model does so too if it was asked so
(`evaluate.base`); otherwise it answers few-shot, as in the paper's measures.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from ift_scale.analyse.intervals import DIFFERENCE, Estimate, mean_columns
from ift_scale.analyse.panel import Panel, Panels
from ift_scale.treatments import dose_of

OWN, OTHERS = "HOMO", "OOD"
MEASURES = ("acquired", "forgotten")
COLUMNS = tuple(
    "setting domain seeds domains of_domains over treatment size kind amount base acquired "
    "acquired_low acquired_high forgotten forgotten_low forgotten_high acquired_change "
    "acquired_change_low acquired_change_high forgotten_change forgotten_change_low "
    "forgotten_change_high reason".split()
)
_SIGNS = {OWN: 1, OTHERS: -1}
_GAIN = "gain"
_ZERO_SHOT = "zero_shot_accuracy"
"""The base model's right answers 0-shot, among a panel's values if it was asked so."""


def dose_table(panels: Panels, level: float) -> pd.DataFrame:
    """Returns one row per setting and domain, and over all its domains.

    `size`, `kind`, `amount`: the dose (`treatments.Dose`). `NAME_change`: the measure minus that of
    the whole dose (`Dose.whole`), paired by question and seed; empty for whole doses and if no
    seed is shared. `base`: the prompts of the base model, `0-shot` or `few-shot`.
    """
    asked = Panels([_with_gain(panel) for panel in panels if panel.group in _SIGNS])
    rows = []
    for setting in asked.settings:
        dose = dose_of(setting)
        of_dose = {"treatment": dose.of, "size": dose.size, "kind": dose.kind}
        for name, domains in asked.choices:
            own, others = (asked.chosen(domains, group, setting) for group in (OWN, OTHERS))
            if own and others:
                both = {panel.domain for panel in own} & {panel.domain for panel in others}
                own, others = ([p for p in of if p.domain in both] for of in (own, others))
            if chosen := own or others:
                row = {"setting": setting, "domain": name, **of_dose, "amount": dose.amount}
                row |= {"seeds": min(len(p.seeds(setting)) for p in chosen)}
                row |= asked.coverage(chosen)
                row["base"] = "0-shot" if _ZERO_SHOT in chosen[0].values else "few-shot"
                rows.append(row | _measures(asked, (own, others), setting, dose.whole, level))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _with_gain(panel: Panel) -> Panel:
    """Returns the panel with `gain`, right minus the base model's right; NaN if not asked."""
    few_shot_Q = panel.base.columns.correct.to_numpy(dtype=float)
    gain_AQ = panel.values["accuracy"] - panel.values.get(_ZERO_SHOT, few_shot_Q)
    return replace(panel, values=panel.values | {_GAIN: _SIGNS[panel.group] * gain_AQ})


def _measures(
    asked: Panels,
    chosen: Sequence[list[Panel]],
    setting: str,
    whole: str | None,
    level: float,
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    reasons = []
    for name, group, panels in zip(MEASURES, _SIGNS, chosen, strict=True):
        made = asked.estimate(panels, setting, _GAIN, DIFFERENCE) if panels else None
        row |= mean_columns(name, made, level)
        if made is None:
            why = "the base model was not asked" if panels else "no arm was asked"
            reasons.append(f"{name}: {why} questions of the group {group}")
        else:
            reasons.append(made.missing_over_questions)
        change = None if whole is None else _change(asked, panels, setting, whole, _SIGNS[group])
        row |= mean_columns(f"{name}_change", change, level)
    return row | {"reason": "; ".join(dict.fromkeys(filter(None, reasons)))}


def _change(
    asked: Panels, panels: Sequence[Panel], setting: str, whole: str, sign: int
) -> Estimate | None:
    both = [p for p in panels if whole in p.settings and p.seeds(setting, whole)]
    pair = (setting, whole) if sign > 0 else (whole, setting)
    return asked.difference(both, *pair) if both else None
