"""One self-contained page of all rows: how many times better ours is, throughput against accuracy, how costs grow, every figure."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks.suite import goals, growth
from benchmarks.suite.markdown import hardware
from benchmarks.suite.registry import BENCHMARKS
from benchmarks.suite.rows import MEASURED, OURS, PREDICTED, Row, between, number, only, read
from ift_scale.errors import DataError, Place
from ift_scale.io.files import read_json, write_text
from ift_scale.report import colors
from ift_scale.report.document import document
from ift_scale.report.html import NONE, figure, folded, joined, legend, paragraph, table
from ift_scale.report.svg import SHAPES, Axis, Chart, down, limits

_PALETTE = [
    colors.NAMED[name]
    for name in (
        "harmonious",
        "incompatible",
        "self_aligning",
        "contextualized",
        "conflict_weighted",
    )
]
SCALING = "predicted_scaling.json"
_LOADS = {
    "full micro-batch": "each GPU a full micro-batch a step",
    "global batch": "256 examples a step on all GPUs together",
}
_NO_RATIO = "no ratio: no peer ran beside it, or another row tells it"


def write(rows: Path, out: Path) -> None:
    """The page of a file or folder of rows; DataError where there are none."""
    found = read(rows)
    if not found:
        raise DataError(
            Place(rows),
            "holds no benchmark rows",
            "Run `python -m benchmarks run NAME` first, or name another folder",
        )
    foretold = read_json(rows / SCALING) if rows.is_dir() else {}
    write_text(out, page(found, foretold.get("rows", {}).get("predicted", [])))


def page(rows: Sequence[Row], scaling: Sequence[Mapping[str, Any]] = ()) -> str:
    """`scaling`: what predict_scaling.py stores."""
    order = list(BENCHMARKS)
    names = sorted(
        {row.benchmark for row in rows},
        key=lambda n: (order.index(n) if n in order else len(order), n),
    )
    expected = [
        dict(zip(("goal", "came", "more in"), line, strict=True)) for line in goals.told(rows)
    ]
    sections = [
        (
            "goals",
            "what was expected, and what came",
            table(
                [_plain(line) for line in expected],
                "Goals of the project, judged by the rows of a CPU",
            ),
        )
    ]
    sections += [(name, name, _section(name, only(rows, benchmark=name))) for name in names]
    if scaling:
        sections.append(("predicted-scaling", "predicted scaling", _scaling(scaling)))
    machines = ", ".join(sorted({hardware(row) for row in rows}))
    dates = sorted(row.date[:10] for row in rows)
    return document(
        "Benchmarks",
        "Throughput beside accuracy",
        f"{dates[0]} to {dates[-1]}; {machines}",
        sections,
    )


def _plain(line: Mapping[str, str]) -> dict[str, object]:
    """Without Markdown's marks."""
    return {key: re.sub(r"\*\*|`|\[([^]]*)\]\([^)]*\)", r"\1", text) for key, text in line.items()}


def _section(name: str, rows: Sequence[Row]) -> Markup:
    parts: list[Markup] = []
    if name in BENCHMARKS:
        b = BENCHMARKS[name]
        parts.append(
            paragraph(
                f"Measures {b.measures}; against {b.against}. A figure is kept only if: {b.gate}.",
                "quiet",
            )
        )
    parts += [
        chart
        for chart in (_ratios(rows), _trade(rows), _predicted(rows), _growth(rows))
        if chart is not None
    ]
    return joined(
        [
            *parts,
            folded(
                [_told(row) for row in rows], f"Every figure of {name}", _NO_RATIO, heads=3, most=4
            ),
        ]
    )


def _told(row: Row) -> dict[str, object]:
    gap = row.gate.checked if row.gate.gap is None else f"{row.gate.checked}: {row.gate.gap:.2g}"
    told = {
        "case": ", ".join(part for part in (row.case, row.sizes) if part),
        "program": row.who,
        "quantity": f"{row.quantity}, {row.unit}",
        "median": number(row.value),
        "p20 to p80": f"{number(row.p20)} to {number(row.p80)}"
        if row.p20 is not None and row.p80 is not None
        else NONE,
        "smallest to largest": f"{number(row.low)} to {number(row.high)}",
        "95% interval": f"{number(row.interval[0])} to {number(row.interval[1])}"
        if row.interval
        else NONE,
        "repeats": row.repeats,
        "times better than": "; ".join(
            f"{peer} {between(ratio)}" for peer, ratio in row.ratios.items()
        )
        or NONE,
        "checked": gap,
        "date": row.date[:10],
        "commit": (row.commit or "none")[:7],
        "device": hardware(row),
    }
    return told


def _ratios(rows: Sequence[Row]) -> Markup | None:
    """How many times better ours is than each peer, on a logarithmic axis."""
    panels = []
    for row in rows:
        if not row.ratios:
            continue
        ordered = sorted(row.ratios.items(), key=lambda item: -item[1].value)
        ends = [math.log10(x) for _, ratio in ordered for x in (ratio.low, ratio.high) if x > 0]
        low, high = limits([*ends, 0.0])
        chart = Chart(Axis(low, high, "times better", _log_marks(low, high)), down([name for name, _ in ordered]),
                      f"{row.title}: times better than each peer", 60 + 24 * len(ordered))  # fmt: skip
        chart.upright(0)
        for place, (_, ratio) in enumerate(ordered):
            chart.span(place, math.log10(ratio.low), math.log10(ratio.high), _PALETTE[0])
            chart.point(math.log10(ratio.value), place, _PALETTE[0])
        panels.append((f"{row.who}, {row.case}", chart.svg()))
    if not panels:
        return None
    caption = "How many times better ours is, repeat by repeat: median, and smallest to largest. The dashed line is equality."
    return figure(panels, caption)


def _trade(rows: Sequence[Row]) -> Markup | None:
    """Throughput against accuracy: a panel a measure, a point a program and setting."""
    speeds = {(row.case, row.who): row for row in only(rows, quantity="tokens per second")}
    panels = []
    whos = list(dict.fromkeys(who for _, who in speeds))
    for measure in ("accuracy", "consistency"):
        found = [
            (speeds[row.case, row.who], row)
            for row in only(rows, quantity=measure)
            if (row.case, row.who) in speeds
        ]
        if not found:
            continue
        y = limits([value for _, row in found for value in (row.interval or (row.value,))])
        x = limits([value for speed, _ in found for value in (speed.low, speed.high)], least=0)
        chart = Chart(
            Axis(*x, "tokens a second"),
            Axis(*y, f"HOMO {measure}, {found[0][1].unit}"),
            f"{measure} against throughput",
        )
        for speed, row in found:
            color, shape = (
                _PALETTE[whos.index(row.who)],
                SHAPES[_cases(found).index(row.case) % len(SHAPES)],
            )
            if row.interval:
                chart.interval(speed.value, *row.interval, color)
            chart.line([speed.low, speed.high], [row.value, row.value], color, "interval")
            chart.point(speed.value, row.value, color, shape)
        panels.append((measure, chart.svg()))
    if not panels:
        return None
    named = legend([(_PALETTE[i], OURS if who == OURS else who) for i, who in enumerate(whos)])
    shapes = ", ".join(
        f"{shape} {case}" for case, shape in zip(_cases(found), SHAPES, strict=False)
    )
    return figure(
        panels,
        f"The same arms by both trainers: what is learnt against tokens a second, 95% intervals. {shapes}.",
        named,
    )


def _cases(found: Sequence[tuple[Row, Row]]) -> list[str]:
    return list(dict.fromkeys(row.case for _, row in found))


def _predicted(rows: Sequence[Row]) -> Markup | None:
    """What our models foretell against what was measured, a panel a quantity; the errors' median and largest in its title."""
    panels = []
    foretold = {(row.case, *row.at.items(), row.quantity): row for row in only(rows, who=PREDICTED)}
    for quantity in dict.fromkeys(row.quantity for row in foretold.values()):
        pairs = [
            (row, foretold[key])
            for row in only(rows, who=MEASURED, quantity=quantity)
            if (key := (row.case, *row.at.items(), quantity)) in foretold
        ]
        if not pairs:
            continue
        ends = limits([math.log10(row.value) for pair in pairs for row in pair])
        unit, marks = pairs[0][0].unit, _log_marks(*ends)
        chart = Chart(
            Axis(*ends, f"measured, {unit}", marks),
            Axis(*ends, f"predicted, {unit}", marks),
            f"{quantity}, predicted",
        )
        chart.line(ends, ends, "currentColor", "dashed")
        for measured, predicted in pairs:
            chart.point(
                math.log10(measured.value), math.log10(predicted.value), _PALETTE[2], size=3.5
            )
        errors = sorted(abs(predicted.value / measured.value - 1) for measured, predicted in pairs)
        told = f"{quantity}: error {errors[len(errors) // 2]:.0%} in the median, {errors[-1]:.0%} at most, {len(errors)} points"
        panels.append((told, chart.svg()))
    if not panels:
        return None
    return figure(
        panels, "What is foretold against what was measured; on the dashed line they are equal."
    )


def _scaling(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Share of the peak over GPUs: a figure a load, a panel a machine, a line a model."""
    models, machines, loads = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "machine", "load")
    )
    named = legend([(_PALETTE[i], model) for i, model in enumerate(models)])
    parts: list[Markup] = [
        paragraph("Foretold by the simulator (docs/simulator.md), measured nowhere.", "quiet")
    ]
    for load in loads:
        panels = []
        for machine in machines:
            mine = [
                row
                for row in rows
                if row.get("as_trained") and (row["load"], row["machine"]) == (load, machine)
            ]
            sizes = sorted({row["gpus"] for row in mine})
            marks = [(math.log2(size), f"{size:,}") for size in sizes]
            chart = Chart(Axis(*limits([mark for mark, _ in marks]), "GPUs", marks), Axis(0, 0.8, "MFU", percent=True),
                          f"predicted MFU over GPUs, {machine}, {load}")  # fmt: skip
            for color, model in zip(_PALETTE, models, strict=False):
                points = [
                    (math.log2(row["gpus"]), row["mfu"]) for row in mine if row["model"] == model
                ]
                chart.line([x for x, _ in points], [y for _, y in points], color)
                for x, y in points:
                    chart.point(x, y, color, size=3)
            panels.append((machine, chart.svg()))
        parts.append(
            figure(
                panels,
                f"Model FLOPs utilisation over GPUs: {_LOADS.get(load, load)}; settings by `auto`.",
                named,
            )
        )
    return joined(parts)


def _growth(rows: Sequence[Row]) -> Markup | None:
    """Each series with its fitted line, both axes logarithmic."""
    panels = []
    drawable = [
        row
        for row in rows
        if row.better != "higher" and row.low > 0 and all(size > 0 for size in row.at.values())
    ]
    for found in growth.series(drawable):
        logs = [(math.log10(size), math.log10(cost)) for size, cost in found.points]
        x, y = limits([a for a, _ in logs]), limits([b for _, b in logs], pad=0.15)
        unit = found.rows[0].unit
        chart = Chart(
            Axis(*x, found.size, _log_marks(*x)), Axis(*y, unit, _log_marks(*y)), found.name
        )
        for row in found.rows:
            at = math.log10(row.at[found.size])
            chart.interval(at, math.log10(row.low), math.log10(row.high), _PALETTE[2])
            chart.point(at, math.log10(row.value), _PALETTE[2])
        line = growth.fit(found.points)
        if line is not None:
            ends = [10**a for a, _ in (logs[0], logs[-1])]
            chart.line(
                [math.log10(end) for end in ends],
                [math.log10(line.at(end)) for end in ends],
                _PALETTE[1],
                "dashed",
            )
        panels.append((f"{found.name}: {slope(line)}", chart.svg()))
    caption = "Cost against size, both logarithmic; the slope of 1 is proportional growth. Dashed: the fitted power."
    return figure(panels, caption) if panels else None


def slope(line: growth.Fit | None) -> str:
    """`slope 0.98 [0.95, 1.01]`."""
    if line is None:
        return "no slope"
    interval = (
        "" if line.low is None or line.high is None else f" [{line.low:.2f}, {line.high:.2f}]"
    )
    return f"slope {line.slope:.2f}{interval}"


def _log_marks(low: float, high: float) -> list[tuple[float, str]]:
    """Places on a logarithmic axis (base 10): powers of ten, and round numbers between them where there are few."""
    width = high - low
    steps: tuple[float, ...] = (
        (1,) if width > 2.2 else (1, 2, 5) if width > 0.7 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    )
    values = [m * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for m in steps]
    return [
        (math.log10(v), f"{v:,.0f}" if v >= 1000 else f"{v:g}")
        for v in values
        if low <= math.log10(v) <= high
    ]
