"""The paper's figures next to this run's."""

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from ift_scale.report.coverage import GROUPS, overall
from ift_scale.report.facts import Facts
from ift_scale.report.findings import paper_figures
from ift_scale.report.html import joined, paragraph, table
from ift_scale.report.text import absent, interval, number
from ift_scale.treatments import consistency_setting, treatment


def body(facts: Facts) -> Markup:
    text = (
        "The paper's figures and this run's. Models, questions and set sizes differ, so compare "
        "signs rather than magnitudes"
    )
    rows = [*_differences(facts), *_kl(facts), *_correlation(facts)]
    made = table(rows, text, "not evaluated in this run, or undefined.", heads=2)
    return joined(
        [
            made,
            paragraph(
                f"Source: {paper_figures()['source']}. In brackets: {facts.level} intervals.",
                "note",
            ),
        ]
    )


def _groups(facts: Facts) -> list[str]:
    """Returns the groups for which the paper has figures."""
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
    theirs, frame = paper_figures()["differences"], overall(facts["comparisons"])
    for first, second in dict.fromkeys((r["first"], r["second"]) for r in theirs):
        name = f"{treatment(first).short} − {treatment(second).short}, points"
        ours = frame[(frame["first"] == first) & (frame["second"] == second)].to_dict("records")
        for group in _groups(facts):
            reported = [
                r
                for r in theirs
                if (r["first"], r["second"]) == (first, second) and r["group"] in (None, group)
            ]
            if reported:
                row: dict[str, Any] = next((r for r in ours if r["group"] == group), {})
                values = " / ".join(number(r["value"] * 100, 2, sign=True) for r in reported)
                models = " / ".join(r["models"] for r in reported) + (
                    "" if reported[0]["group"] else " (group not reported)"
                )
                yield _row(name, group, interval(row, "difference", sign=True), values, models)


def _kl(facts: Facts) -> Iterator[dict[str, Any]]:
    for reported in paper_figures()["kl"]:
        for group in _groups(facts):
            ours = _kl_at(facts, _ratio(facts, reported["place"], group), group)
            name = f"KL at {reported['place']}, nats"
            yield _row(name, group, ours, number(reported["value"]), reported["models"])


def _ratio(facts: Facts, which: str, group: str) -> float | None:
    """Returns 0 for "ratio 0", else the ratio with the best accuracy."""
    if which == "ratio 0":
        return 0.0
    best = overall(facts["best_ratio"])
    frame = best[best.group == group].best_ratio.tolist()
    return None if not frame or absent(frame[0]) else float(frame[0])


def _kl_at(facts: Facts, ratio: float | None, group: str) -> str | None:
    if ratio is None:
        return None
    rows = overall(facts["settings"])
    frame = rows[(rows.setting == consistency_setting(ratio)) & (rows.group == group)].to_dict(
        "records"
    )
    return interval(frame[0], "kl", share=False) if frame else None


def _correlation(facts: Facts) -> Iterator[dict[str, Any]]:
    reported = paper_figures()["correlation"]
    frame = facts["correlation"][facts["correlation"].measure == reported["measure"]]
    rows = {row["group"]: row for row in frame.to_dict("records")}
    for group in rows or _groups(facts):
        ours = number(rows.get(group, {}).get("rho"), 2, sign=True)
        name = "partial rho of consistency"
        limits = f"{reported['low']} to {reported['high']}"
        yield _row(name, group, ours, limits, reported["models"])
