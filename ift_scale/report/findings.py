"""What the numbers say, in sentences that never claim more than an interval shows.

A finding of the paper *holds* here where the interval of our estimate lies on its side of zero, and stays there after Holm's
correction where there is one; it *does not hold* where the interval lies on the other side; else we *cannot tell*, and with one
seed never (`verdicts.verdict`).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pandas as pd

from ift_scale.report.coverage import over
from ift_scale.report.facts import ALL, Facts, is_free, overall
from ift_scale.report.html import NONE, absent, listed, number, p_value, points
from ift_scale.report.verdicts import Verdict, verdict
from ift_scale.treatments import POOLED, treatment

CLAIMS = (
    ("harmonious", "incompatible", "Sets that agree with the model beat sets that contradict it"),
    (
        "self_aligning",
        "incompatible",
        "The model's own wrong answers beat the right ones it does not know",
    ),
    (
        "contextualized",
        "incompatible",
        "Giving the needed knowledge with the question beats contradicting the model",
    ),
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """`claim`: the paper's; `where`: the group or domain that the sentence speaks of."""

    claim: str
    where: str
    verdict: Verdict
    text: str


def paper() -> dict[str, Any]:
    """The figures of the paper that ours are held against."""
    figures: dict[str, Any] = json.loads(
        (resources.files("ift_scale.report") / "paper.json").read_text(encoding="utf-8")
    )
    return figures


def cautions(base: pd.DataFrame, chance: float, seeds: int) -> list[str]:
    """What to know before any finding is read."""
    out = []
    base = base[~base.group.map(is_free).astype(bool)]
    at_chance = base[(base.accuracy_low <= chance) & (chance <= base.accuracy_high)]
    if len(base) and len(at_chance) == len(base):
        out.append(
            f"The base model cannot be told from chance ({chance:.0%}) in any group: it has no knowledge here that the sets could "
            "agree or disagree with, so differences below say nothing about knowledge."
        )
    elif len(at_chance):
        where = ", ".join(f"{row.domain} {row.group}" for row in at_chance.itertuples())
        out.append(f"The base model cannot be told from chance ({chance:.0%}) on: {where}.")
    if seeds == 1:
        out.append(
            "One seed only: what another seed would have given is not known, so no finding can be judged. The intervals that are "
            "shown are over questions; they are about these very models."
        )
    return out


def differences(comparisons: pd.DataFrame, paper: list[Row], level: float) -> list[Finding]:
    """The paper's claims about two settings, by group."""
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
    told = verdict(low, high, row.get("seeds"), corrected, level)
    text = _estimate(
        f"{points(row['difference'], True)} points", points(low, True), points(high, True), row
    )
    if absent(low):
        text += f": {_reason(row, 'no interval could be made')}"
    elif low <= 0 <= high:
        text += ": the interval holds zero, so no difference is shown"
        if not absent(row.get("detectable")):
            text += f"; this test could have shown one of {points(row['detectable'])}"
    elif told == "cannot tell" and not absent(corrected):
        text += f": not after Holm's correction for the number of tests (p = {p_value(corrected)})"
    if theirs:
        text += f"; paper {listed([number(r['value'] * 100, 2, sign=True) for r in theirs])}"
    return Finding(claim, row["group"], told, text + ".")


def _estimate(value: str, low: str, high: str, row: Row) -> str:
    """`+2.0 points (-1.0 to +5.0) over 3 of 4 domains`; without what there is not."""
    return " ".join(
        filter(None, [value, "" if NONE in (low, high) else f"({low} to {high})", over(row)])
    )


def _reason(row: Row, otherwise: str) -> str:
    """The first of the reasons that the row gives, which is about its interval."""
    return (
        otherwise
        if absent(row.get("reason")) or not row["reason"]
        else str(row["reason"]).split("; ")[0]
    )


def best_ratio(table: pd.DataFrame) -> list[Finding]:
    claim = "All self-aligning (ratio 1) is not the best mixture"
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
        told = verdict(row["low"], row["high"], row.get("seeds"))
        text = f"best at {row['best_ratio']:g}"
        text += (
            f"; the best of the others, {row['best_other']:g}, is "
            if row["best_ratio"] >= 1
            else ", "
        )
        value = f"{points(row['difference'], True)} points against ratio 1"
        text += _estimate(value, points(row["low"], True), points(row["high"], True), row)
        if absent(row["low"]):
            text += f": {_reason(row, 'no interval could be made')}"
        elif told == "cannot tell":
            text += ": the interval holds zero"
        out.append(Finding(claim, where, told, text + "."))
    return out


def correlation(table: pd.DataFrame, theirs: Row, level: float = 0.95) -> list[Finding]:
    claim = "The more consistent an arm stays with the base model, the better it answers"
    rows = table[table.measure == "consistency"]
    if not len(rows):
        return [Finding(claim, "", "not asked", "This run has fewer than three ratios.")]
    out = []
    for row in rows.to_dict("records"):
        if absent(row["rho"]):
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
        told = verdict(row["low"], row["high"], row.get("seeds"), row.get("p_within"), level)
        low, high = (number(row[end], 2, sign=True) for end in ("low", "high"))
        text = _estimate(
            f"partial rank correlation {number(row['rho'], 2, sign=True)}", low, high, row
        )
        if absent(row["low"]):
            text += f": {_reason(row, 'no interval could be made')}"
        elif row["low"] <= 0 <= row["high"]:
            text += ": the interval holds zero"
        elif told == "cannot tell":
            text += f": not by the permutations within domains (p = {p_value(row.get('p_within'))})"
        out.append(
            Finding(
                claim,
                row["group"],
                told,
                f"{text}; paper {theirs['low']:.2f} to {theirs['high']:.2f}.",
            )
        )
    return out


def all_findings(facts: Facts) -> dict[str, list[Finding]]:
    """By claim."""
    level, theirs = facts.config.analyse.confidence_level, paper()
    found: Iterable[Finding] = [
        *differences(facts["comparisons"], theirs["differences"], level),
        *best_ratio(facts["best_ratio"]),
        *correlation(facts["correlation"], theirs["correlation"], level),
    ]
    out: dict[str, list[Finding]] = {}
    for finding in found:
        out.setdefault(finding.claim, []).append(finding)
    return out
