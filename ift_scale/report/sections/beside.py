"""The paper's figures beside ours."""

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from ift_scale.report.facts import GROUPS, Facts, overall
from ift_scale.report.findings import paper
from ift_scale.report.html import absent, interval, joined, number, paragraph, table
from ift_scale.treatments import consistency_setting, treatment


def body(facts: Facts) -> Markup:
    text = "The paper's figures beside ours: other models, questions and sizes, so compare the sign rather than the size"
    rows = [*_differences(facts), *_kl(facts), *_correlation(facts)]
    made = table(rows, text, "not asked in this run, or not defined in it.", heads=2)
    return joined(
        [
            made,
            paragraph(
                f"Source: {paper()['source']}. In brackets: {facts.level} intervals.", "note"
            ),
        ]
    )


def _asked(facts: Facts) -> list[str]:
    """The groups that the paper has figures of."""
    return [group for group in facts.groups if group in GROUPS] or facts.groups


def _row(figure: str, group: str, ours: str | None, theirs: str, models: str) -> dict[str, Any]:
    return {
        "figure": figure,
        "group": group,
        "this run": ours,
        "paper": theirs,
        "the paper's models": models,
    }


def _differences(facts: Facts) -> Iterator[dict[str, Any]]:
    theirs, found = paper()["differences"], overall(facts["comparisons"])
    for first, second in dict.fromkeys((r["first"], r["second"]) for r in theirs):
        name = f"{treatment(first).short} − {treatment(second).short}, points"
        ours = found[(found["first"] == first) & (found["second"] == second)].to_dict("records")
        for group in _asked(facts):
            told = [
                r
                for r in theirs
                if (r["first"], r["second"]) == (first, second) and r["group"] in (None, group)
            ]
            if told:
                row: dict[str, Any] = next((r for r in ours if r["group"] == group), {})
                values = " / ".join(number(r["value"] * 100, 2, sign=True) for r in told)
                models = " / ".join(r["models"] for r in told) + (
                    "" if told[0]["group"] else " (group not told)"
                )
                yield _row(name, group, interval(row, "difference", sign=True), values, models)


def _kl(facts: Facts) -> Iterator[dict[str, Any]]:
    for told in paper()["kl"]:
        for group in _asked(facts):
            ours = _kl_at(facts, _ratio(facts, told["place"], group), group)
            yield _row(
                f"KL at {told['place']}, nats", group, ours, number(told["value"]), told["models"]
            )


def _ratio(facts: Facts, place: str, group: str) -> float | None:
    """0, or the ratio that was best in accuracy."""
    if place == "ratio 0":
        return 0.0
    best = overall(facts["best_ratio"])
    found = best[best.group == group].best_ratio.tolist()
    return None if not found or absent(found[0]) else float(found[0])


def _kl_at(facts: Facts, ratio: float | None, group: str) -> str | None:
    if ratio is None:
        return None
    rows = overall(facts["settings"])
    found = rows[(rows.setting == consistency_setting(ratio)) & (rows.group == group)].to_dict(
        "records"
    )
    return interval(found[0], "kl", share=False) if found else None


def _correlation(facts: Facts) -> Iterator[dict[str, Any]]:
    told = paper()["correlation"]
    found = facts["correlation"][facts["correlation"].measure == told["measure"]]
    rows = {row["group"]: row for row in found.to_dict("records")}
    for group in rows or _asked(facts):
        ours = interval(rows.get(group, {}), "rho", share=False, sign=True, ends=("low", "high"))
        name = "partial rho of consistency"
        yield _row(name, group, ours, f"{told['low']} to {told['high']}", told["models"])
