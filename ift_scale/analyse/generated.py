"""abstention.csv and generated.csv: what the generated answers say, where they were asked for."""

from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.intervals import SHARE, mean_columns
from ift_scale.analyse.panel import Panel, Panels, num_questions

_SHARES = ("refused", "refused_known", "refused_unknown", "answered", "f1", "average_precision")
ABSTENTION = (
    "setting", "domain", "group", "questions", "seeds", "domains", "of_domains", "over", *_SHARES, "accuracy_answered",
    "accuracy_answered_low", "accuracy_answered_high", *(f"{name}_domains" for name in (*_SHARES, "accuracy_answered")), "reason",
)  # fmt: skip
_MEASURES = {
    "letter_accuracy": "accuracy", "generated_accuracy": "generated_accuracy", "agreement": "generated_agreement",
    "unparsed": "unparsed",
}  # fmt: skip
GENERATED = ("setting", "domain", "group", "questions", "domains", "of_domains", "over", *_MEASURES)
_NOT_ASKED = (
    "the base model was not asked these questions, so it is not known what it knows of them"
)
_REASONS = {
    "refused_known": "the base model knows none of the questions",
    "refused_unknown": "the base model knows all of the questions",
    "accuracy_answered": "nothing was answered",
    "f1": "nothing was refused and there was nothing to refuse",
    "average_precision": "no answer that has a confidence is right",
}


def average_precision(right_N: np.ndarray, confidence_N: np.ndarray) -> float | None:
    """Precision averaged over rising recall as confidence falls, ties taken together; None if no answer is right.

    R-Tuning's AP (Zhang et al. 2023, arXiv 2311.09677): high where what is answered wrongly is the least confident.
    """
    order = np.argsort(-confidence_N, kind="stable")
    right, confidence = right_N[order].astype(float), confidence_N[order]
    if not right.sum():
        return None
    last = np.append(np.flatnonzero(np.diff(confidence)), len(right) - 1)
    true = right.cumsum()[last]
    precision, recall = true / (last + 1), true / right.sum()
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def refusal_f1(refused_N: np.ndarray, unknown_N: np.ndarray) -> float | None:
    """F1 of refusals as a guess at what the base model does not know; None where neither is there."""
    both, either = (refused_N & unknown_N).sum(), refused_N.sum() + unknown_N.sum()
    return float(2 * both / either) if either else None


def abstention_table(panels: Panels, threshold: float, level: float) -> pd.DataFrame:
    """Refusals by what the base model knows (right, with a confidence above the threshold), and how right the rest is.

    Shares over seeds and questions, domains alike: those where the share is defined, which `NAME_domains` counts. The interval of
    `accuracy_answered` is over both (with one seed over questions). `average_precision`: of the answers given, by the letters'
    confidence.
    """
    rows = []
    for setting, name, group, found in _places(panels, "refused"):
        parts = [_abstained(panel, setting, threshold) for panel in found]
        row: dict[str, Any] = {
            "setting": setting,
            "domain": name,
            "group": group,
            "questions": num_questions(found),
        }
        row |= {"seeds": min(len(p.seeds(setting)) for p in found), **panels.coverage(found)}
        for share in _SHARES:
            there = [value for part in parts if (value := part[share]) is not None]
            row |= {share: float(np.mean(there)) if there else None, f"{share}_domains": len(there)}
        made = panels.estimate(found, setting, "given", SHARE)
        row |= mean_columns("accuracy_answered", made, level)
        row["accuracy_answered_domains"] = made.domains if made else 0
        reasons = [*_missing(row, found), made.missing_over_questions if made else ""]
        rows.append(row | {"reason": "; ".join(filter(None, reasons))})
    return pd.DataFrame(rows, columns=list(ABSTENTION))


def _missing(row: dict[str, Any], found: list[Panel]) -> list[str]:
    asked = any(panel.base.columns.correct.notna().any() for panel in found)
    about_base = ("refused_known", "refused_unknown", "f1")
    reasons = [
        _REASONS[key] if asked or key not in about_base else _NOT_ASKED
        for key in _REASONS
        if row[key] is None
    ]
    return list(dict.fromkeys(reasons))


def generated_table(panels: Panels) -> pd.DataFrame:
    """Letters against generated answers, on questions with options: shares over seeds and questions, domains alike."""
    rows = []
    for setting, name, group, found in _places(panels, "unparsed"):
        there = {p.key: np.isfinite(p.of(setting, "unparsed")) for p in found}
        shares = [
            [p.of(setting, measure)[there[p.key]].mean() for measure in _MEASURES.values()]
            for p in found
        ]
        row = {
            "setting": setting,
            "domain": name,
            "group": group,
            "questions": num_questions(found),
        }
        rows.append(
            row | panels.coverage(found) | dict(zip(_MEASURES, np.mean(shares, 0), strict=True))
        )
    return pd.DataFrame(rows, columns=list(GENERATED))


def _places(panels: Panels, measure: str) -> list[tuple[str, str, str, list[Panel]]]:
    """(setting, domain or all, group, panels that have a value of the measure) of every row."""
    return [
        (setting, name, group, found)
        for setting in panels.settings
        for name, group, there in panels.places(setting)
        if (found := [panel for panel in there if np.isfinite(panel.of(setting, measure)).any()])
    ]


def _abstained(panel: Panel, setting: str, threshold: float) -> dict[str, float | None]:
    refused_SQ, given_SQ = panel.of(setting, "refused"), panel.of(setting, "given")
    asked_SQ, answered_SQ = np.isfinite(refused_SQ), np.isfinite(given_SQ)
    known_SQ = np.broadcast_to(panel.known_right(threshold), refused_SQ.shape)
    told_SQ = asked_SQ & panel.base.columns.correct.notna().to_numpy()
    sure = answered_SQ & np.isfinite(panel.of(setting, "confidence"))
    return {
        "refused": _share(refused_SQ[asked_SQ]),
        "refused_known": _share(refused_SQ[told_SQ & known_SQ]),
        "refused_unknown": _share(refused_SQ[told_SQ & ~known_SQ]),
        "answered": _share(answered_SQ[asked_SQ]),
        "f1": refusal_f1(refused_SQ[told_SQ] == 1, ~known_SQ[told_SQ]),
        "average_precision": average_precision(
            given_SQ[sure], panel.of(setting, "confidence")[sure]
        ),
    }


def _share(values_N: np.ndarray) -> float | None:
    return float(values_N.mean()) if len(values_N) else None
