"""The paper's findings against this run, in sentences that never claim more than an interval shows.

A finding *holds* if the estimate's interval is on its side of zero and, if several tests are
corrected for, Holm's p is small enough. It *does not hold* if the interval is on the other side.
Otherwise, and always with one seed, the verdict is *cannot tell* (`verdicts.verdict`).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pandas as pd

from ift_scale.io.manifests import Edit
from ift_scale.report.coverage import ALL, is_free, over, overall
from ift_scale.report.facts import Facts
from ift_scale.report.text import NONE, absent, listed, number, p_value, points
from ift_scale.report.verdicts import Verdict, verdict
from ift_scale.treatments import POOLED, treatment

CLAIMS = (
    ("harmonious", "incompatible", "Sets that agree with the model beat sets that contradict it"),
    (
        "self_aligning",
        "incompatible",
        "The model's own wrong answers beat the right answers that it does not know",
    ),
    (
        "contextualized",
        "incompatible",
        "Giving the required knowledge with the question beats contradicting the model",
    ),
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, the group or domain it is judged on, the verdict and its reason."""

    claim: str
    where: str
    verdict: Verdict
    text: str


def paper_figures() -> dict[str, Any]:
    """Returns the paper's figures (paper.json)."""
    text = (resources.files("ift_scale.report") / "paper.json").read_text(encoding="utf-8")
    figures: dict[str, Any] = json.loads(text)
    return figures


def cautions(
    base: pd.DataFrame, chance: float, seeds: int, edits: Sequence[Edit] = ()
) -> list[str]:
    """Returns what a reader must know before any finding. `edits`: accepted changes of results."""
    out = [
        f"{edit.artifact} was edited by hand after it was made, and accepted on {edit.date[:10]}: "
        f"{listed(edit.files)}."
        for edit in edits
    ]
    base = base[~base.group.map(is_free).astype(bool)]
    at_chance = base[(base.accuracy_low <= chance) & (chance <= base.accuracy_high)]
    if len(base) and len(at_chance) == len(base):
        out.append(
            f"The base model is indistinguishable from chance ({chance:.0%}) in every group. It "
            "has no knowledge here that the sets could agree or disagree with, so the differences "
            "below are not evidence about knowledge."
        )
    elif len(at_chance):
        where = ", ".join(f"{row.domain} {row.group}" for row in at_chance.itertuples())
        out.append(f"The base model is indistinguishable from chance ({chance:.0%}) on: {where}.")
    if seeds == 1:
        out.append(
            "This run has one seed. What other seeds would give is unknown, so no finding can be "
            "judged. The intervals shown are over questions and are about these trained models."
        )
    return out


def differences(comparisons: pd.DataFrame, paper: list[Row], level: float) -> list[Finding]:
    """Returns the verdicts on the paper's claims about two settings, by group."""
    rows = overall(comparisons)
    out = []
    for first, second, claim in CLAIMS:
        name = f"{claim} ({treatment(first).short} over {treatment(second).short})"
        found = rows[(rows["first"] == first) & (rows["second"] == second)]
        if not len(found):
            out.append(Finding(name, "", "not asked", "This run has no such comparison."))
        for row in found.to_dict("records"):
            theirs = [
                r
                for r in paper
                if (r["first"], r["second"]) == (first, second)
                and r["group"] in (None, row["group"])
            ]
            out.append(_difference(name, row, theirs, level))
    return out


def _difference(claim: str, row: Row, theirs: list[Row], level: float) -> Finding:
    low, high, corrected = row["difference_low"], row["difference_high"], row.get("holm_p")
    if absent(row["difference"]):
        return Finding(
            claim,
            row["group"],
            verdict(None, None, row.get("seeds")),
            "No difference could be computed.",
        )
    judged = verdict(low, high, row.get("seeds"), corrected, level)
    text = _estimate(
        f"{points(row['difference'], True)} points", points(low, True), points(high, True), row
    )
    if absent(low):
        text += f": {_reason(row, 'no interval could be made')}"
    elif low <= 0 <= high:
        text += ": the interval includes zero, so no difference is shown"
        if not absent(row.get("detectable")):
            text += f"; the test could have detected {points(row['detectable'])} points"
    elif judged == "cannot tell" and not absent(corrected):
        text += f": not significant after Holm's correction (p = {p_value(corrected)})"
    if theirs:
        text += f"; paper {listed([number(r['value'] * 100, 2, sign=True) for r in theirs])}"
    return Finding(claim, row["group"], judged, text + ".")


def _estimate(value: str, low: str, high: str, row: Row) -> str:
    """Formats `+2.0 points (-1.0 to +5.0) over 3 of 4 domains`, without the missing parts."""
    return " ".join(
        filter(None, [value, "" if NONE in (low, high) else f"({low} to {high})", over(row)])
    )


def _reason(row: Row, otherwise: str) -> str:
    """Returns the row's first reason, which is about its interval."""
    return (
        otherwise
        if absent(row.get("reason")) or not row["reason"]
        else str(row["reason"]).split("; ")[0]
    )


def best_ratio(table: pd.DataFrame) -> list[Finding]:
    claim = "Ratio 1 (all examples self-aligning) is not the best mixture"
    if not len(table):
        return [Finding(claim, "", "not asked", "This run has fewer than three ratios.")]
    chosen = (
        table[table.domain == ALL] if (table.domain == ALL).any() else table[table.domain != POOLED]
    )
    out = []
    for row in (chosen if len(chosen) else table).to_dict("records"):
        where = row["group"] if row["domain"] == ALL else f"{row['domain']}, {row['group']}"
        if absent(row["best_ratio"]) or absent(row["difference"]):
            reason = (
                "ratio 1 was not among the arms" if absent(row.get("reason")) else row["reason"]
            )
            out.append(Finding(claim, where, verdict(None, None, row.get("seeds")), f"{reason}."))
            continue
        judged = verdict(row["low"], row["high"], row.get("seeds"))
        text = f"best at {row['best_ratio']:g}"
        text += (
            f"; the best of the others, {row['best_other']:g}, is "
            if row["best_ratio"] >= 1
            else ", "
        )
        value = f"{points(row['difference'], True)} points compared with ratio 1"
        text += _estimate(value, points(row["low"], True), points(row["high"], True), row)
        if absent(row["low"]):
            text += f": {_reason(row, 'no interval could be made')}"
        elif judged == "cannot tell":
            text += ": the interval includes zero"
        out.append(Finding(claim, where, judged, text + "."))
    return out


def correlation(table: pd.DataFrame, theirs: Row, level: float = 0.95) -> list[Finding]:
    claim = "The more consistent an arm is with the base model, the higher its accuracy"
    rows = table[table.measure == "consistency"]
    if not len(rows):
        return [Finding(claim, "", "not asked", "This run has fewer than three ratios.")]
    out = []
    for row in rows.to_dict("records"):
        if absent(row["rho_within"]):
            reason = "it is not defined here" if absent(row["reason"]) else str(row["reason"])
            out.append(
                Finding(
                    claim,
                    row["group"],
                    verdict(None, None, row.get("seeds")),
                    f"no correlation: {reason}.",
                )
            )
            continue
        judged = verdict(row["low"], row["high"], row.get("seeds"), row.get("p_within"), level)
        low, high = (number(row[end], 2, sign=True) for end in ("low", "high"))
        text = _estimate(
            f"mean rank correlation within domains {number(row['rho_within'], 2, sign=True)}",
            low,
            high,
            row,
        )
        if absent(row["low"]):
            text += f": {_reason(row, 'no interval could be made')}"
        elif row["low"] <= 0 <= row["high"]:
            text += ": the interval includes zero"
        elif judged == "cannot tell":
            p = p_value(row.get("p_within"))
            text += f": not significant by permutations within domains (p = {p})"
        out.append(
            Finding(
                claim,
                row["group"],
                judged,
                f"{text}. Partial correlation {number(row['rho'], 2, sign=True)}; paper "
                f"{theirs['low']:.2f} to {theirs['high']:.2f}.",
            )
        )
    return out


def all_findings(facts: Facts) -> dict[str, list[Finding]]:
    """Returns all findings by claim."""
    level, theirs = facts.config.analyse.confidence_level, paper_figures()
    found: Iterable[Finding] = [
        *differences(facts["comparisons"], theirs["differences"], level),
        *best_ratio(facts["best_ratio"]),
        *correlation(facts["correlation"], theirs["correlation"], level),
    ]
    out: dict[str, list[Finding]] = {}
    for finding in found:
        out.setdefault(finding.claim, []).append(finding)
    return out
