"""Speed of each stage, and where the run's time went."""

from typing import Any

from markupsafe import Markup

from ift_scale.io.manifests import Manifest
from ift_scale.report.facts import Facts, ReportInputs
from ift_scale.report.html import figure, joined, paragraph, table
from ift_scale.report.svg import Axis, Chart, down
from ift_scale.report.text import NONE

TRAIN_PARTS = ("build", "steps", "live", "export_epochs", "export")
"""Parts of an arm's seconds; `live` is missing in arms trained before it was measured."""


def body(facts: Facts) -> Markup | None:
    rows, seconds = stages(facts.inputs.manifests), part_seconds(facts.inputs)
    if not rows or not seconds:
        return None
    machines = list(
        dict.fromkeys(m.machine for found in facts.inputs.manifests.values() for m in found)
    )
    return joined(
        [
            paragraph(f"Measured on {' and '.join(machines)}."),
            table(
                rows,
                "Throughput of computation, without engine start and loading",
                "the stage does not count these.",
            ),
            figure([("seconds by part of the run", _seconds(seconds))], "Includes engine starts."),
        ]
    )


def stages(manifests: dict[str, list[Manifest]]) -> list[dict[str, Any]]:
    """Returns each stage's work and speed: questions or tokens per second of computation."""
    rows = []
    for stage, unit in (
        ("probe", "scoring"),
        ("write", "writing"),
        ("train", "steps"),
        ("evaluate", "scoring"),
    ):
        found = [m for m in manifests.get(stage, []) if unit in m.seconds]
        if not found:
            continue
        seconds = sum(m.seconds[unit] for m in found)
        total = sum(
            sum(m.seconds.get(p, 0.0) for p in TRAIN_PARTS)
            if stage == "train"
            else m.seconds.get("total", 0.0)
            for m in found
        )
        questions = sum(m.counts.get("computed_questions", 0) for m in found)
        tokens = sum(m.counts.get("prompt_tokens", m.counts.get("tokens", 0)) for m in found)
        rows.append(
            {
                "stage": stage,
                "artifacts": f"{len(found):,}",
                "questions": f"{questions:,.0f}" if questions else NONE,
                "tokens": f"{tokens:,.0f}" if tokens else NONE,
                "seconds of computation": f"{seconds:,.1f}",
                "total seconds": f"{total:,.1f}",
                "questions/s": f"{questions / seconds:,.0f}" if questions and seconds else NONE,
                "tokens/s": f"{tokens / seconds:,.0f}" if tokens and seconds else NONE,
            }
        )
    return rows


def part_seconds(inputs: ReportInputs) -> dict[str, float]:
    """Returns the seconds of each part of the run, in the order of the stages."""
    parts: dict[str, float] = {}
    for stage, manifests in inputs.manifests.items():
        if stage == "train":
            launched = inputs.run_seconds.get("train", {})
            parts["train: tokenise"] = launched.get("tokenise", 0.0)
            parts["train: launch, imports"] = launched.get("launch_and_imports", 0.0)
            measured = {name for manifest in manifests for name in manifest.seconds}
            for name in (part for part in TRAIN_PARTS if part in measured):
                parts[f"train: {name}"] = sum(m.seconds.get(name, 0.0) for m in manifests)
        elif stage in ("probe", "evaluate"):
            parts[f"{stage}: engine start"] = sum(
                m.seconds.get("engine_start", 0.0) for m in manifests
            )
            if stage == "evaluate":
                parts["evaluate: new weights"] = sum(
                    m.seconds.get("load_weights", 0.0) for m in manifests
                )
            parts[f"{stage}: scoring"] = sum(m.seconds.get("scoring", 0.0) for m in manifests)
        else:
            parts[stage] = sum(m.seconds.get("total", 0.0) for m in manifests)
    return parts


def _seconds(seconds: dict[str, float]) -> Markup:
    most = max(seconds.values()) or 1.0
    chart = Chart(
        Axis(0, most * 1.3),
        down(list(seconds)),
        "Seconds by part of the run",
        height=18 * len(seconds) + 36,
    )
    for index, value in enumerate(seconds.values()):
        chart.bar(0, value, index, 0.7, "#5b7f95")
        chart.text(value, index, f" {value:,.1f} s", over=-4)
    return chart.svg()
