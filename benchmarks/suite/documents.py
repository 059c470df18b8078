"""The generated tables of README.md and docs/, between `<!-- bench:NAME -->` and `<!-- /bench -->`.

A block is a table of the stored rows under a caption (date, machine, commit, command, check). The
text around it is written by hand; it explains and concludes, and dates the figures that it quotes.
"""

import re
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.suite import goals, gpu, growth, intervals
from benchmarks.suite.classes import classes_table
from benchmarks.suite.markdown import commits, markdown_table, measured
from benchmarks.suite.page import slope
from benchmarks.suite.registry import BENCHMARKS, CHECKOUT, results_folder
from benchmarks.suite.reliability import kills_table, soak_table
from benchmarks.suite.rows import Row, Spread, between, number, only, read
from benchmarks.suite.speed import speed_table
from ift_scale.analyse import transitions
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.io.files import write_text
from ift_scale.treatments import treatment

_BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
_WIDTH = 100
_OWN_BLOCKS = frozenset(
    {"demo", "real", "screen-training", "simulator", "models", "classes", "fuzz", "kills", "soak"}
)


def documents() -> list[Path]:
    """README.md, kernels/README.md and every Markdown file under docs/, in a fixed order."""
    pages = sorted((CHECKOUT / "docs").rglob("*.md"))
    return [CHECKOUT / "README.md", CHECKOUT / "kernels" / "README.md", *pages]


def refresh() -> list[Path]:
    """Write the blocks from the stored rows; return the files that changed."""
    changed = stale()
    rows = read(results_folder())
    for path in changed:
        write_text(path, filled(path, path.read_text(encoding="utf-8"), rows))
    return changed


def stale() -> list[Path]:
    """The documents whose blocks differ from the stored rows."""
    rows = read(results_folder())
    texts = {path: path.read_text(encoding="utf-8") for path in documents()}
    return [path for path, text in texts.items() if text != filled(path, text, rows)]


def filled(path: Path, text: str, rows: Sequence[Row]) -> str:
    """The text with every block made from the rows; DataError for an unknown block."""

    def block(found: re.Match[str]) -> str:
        name = found[2]
        if name not in BLOCKS:
            raise DataError(
                Place(path), "unknown block of figures", did_you_mean(name, BLOCKS), name
            )
        return f"{found[1]}{BLOCKS[name](rows)}\n{found[3]}"

    return _BLOCK.sub(block, text)


def _lines(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _on_cpu(rows: Sequence[Row], benchmark: str) -> list[Row]:
    return only(rows, benchmark=benchmark, device="cpu")


def _nothing(benchmark: str) -> str:
    return f"No rows are stored yet: `python -m benchmarks run {benchmark}`."


def experiment_table(name: str, rows: Sequence[Row]) -> str:
    """Accuracy by setting and group, and the paired differences, of the benchmark `name`."""
    found = [row for row in _on_cpu(rows, name) if row.unit == "%"]
    if not found:
        return _nothing(name)
    groups = list(dict.fromkeys(row.case for row in found))
    lines = []
    for who in dict.fromkeys(row.who for row in found):
        cells = [only(found, who=who, case=group) for group in groups]
        lines.append([_setting(who), *(_statistic(*cell) if cell else "" for cell in cells)])
    caption = f"{measured(*found)}: `python -m benchmarks run {name}`."
    return f"{caption}\n\n{markdown_table(['', *groups], lines)}"


def screened_sets_table(rows: Sequence[Row]) -> str:
    """Size and contradicted answers of each set of the benchmark screen-training."""
    found = only(rows, benchmark="screen-training", unit="examples")
    if not found:
        return _nothing("screen-training")
    quantities = list(dict.fromkeys(row.quantity for row in found))
    lines = [
        [case, *(number(only(found, case=case, quantity=q)[0].value) for q in quantities)]
        for case in dict.fromkeys(row.case for row in found)
    ]
    return markdown_table(["set", *quantities], lines)


def consistency_table(rows: Sequence[Row]) -> str:
    """Consistency with the base model by setting and group, of the benchmark real."""
    found = only(rows, benchmark="real", quantity="KL(base || arm)")
    found += only(rows, benchmark="real", quantity="rank correlation")
    if not found:
        return _nothing("real")
    columns = list(dict.fromkeys((row.quantity, row.case) for row in found))
    lines = [
        [
            _setting(who),
            *(_statistic(*only(found, who=who, quantity=q, case=c)) for q, c in columns),
        ]
        for who in dict.fromkeys(row.who for row in found)
    ]
    return markdown_table(["", *(f"{name}, {case}" for name, case in columns)], lines)


def transitions_table(rows: Sequence[Row]) -> str:
    """What stayed or turned right or wrong, by setting and group, of the benchmark real."""
    found = [row for row in only(rows, benchmark="real") if row.quantity in transitions.NAMES]
    if not found:
        return _nothing("real")
    lines = []
    for who, case in dict.fromkeys((row.who, row.case) for row in found):
        cell = {row.quantity: row for row in only(found, who=who, case=case)}
        shares = [f"{100 * cell[name].value:.1f}" for name in transitions.NAMES]
        lines.append([_setting(who), case, *shares])
    heads = [name.replace("_", " to ") + ", %" for name in transitions.NAMES]
    return markdown_table(["", "", *heads], lines)


def measures_table(rows: Sequence[Row]) -> str:
    """Accuracy by each measure and their agreement, by model and group, of the benchmark real."""
    found = only(rows, benchmark="real", quantity="kappa")
    if not found:
        return _nothing("real")
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for row in found:
        group, pair = row.case.split(": ")
        cells.setdefault((row.who, group), {})[pair] = row
    lines = []
    for (who, group), by_pair in cells.items():
        letters, texts = by_pair["letters, cloze"], by_pair["cloze, free"]
        shares = (letters.about["first_accuracy"], letters.about["second_accuracy"])
        accuracies = [f"{100 * share:.1f}" for share in (*shares, texts.about["second_accuracy"])]
        kappas = [f"{row.value:.2f}" for row in by_pair.values()]
        lines.append([_setting(who), group, *accuracies, *kappas])
    heads = ["letters, %", "texts, %", "free, %"]
    heads += [f"kappa of {pair.replace('cloze', 'texts')}" for pair in by_pair]
    return markdown_table(["", "", *heads], lines)


def _setting(who: str) -> str:
    if who == "base":
        return "base model, 5-shot"
    parts = [treatment(part) for part in who.split(" - ")]
    if len(parts) > 1 or parts[0].short == parts[0].label:  # users' own sets have one name
        return " - ".join(part.short for part in parts)
    return f"{parts[0].short} {parts[0].label}"


def _statistic(row: Row) -> str:
    """Formats `55.7 [50.9, 60.5]`: differences signed, three decimal places unless in percent.

    A mean over fewer domains than the run has is marked with both numbers.
    """
    shape = ("+" if "difference" in row.quantity else "") + (".1f" if row.unit == "%" else ".3f")
    text = f"{row.value:{shape}}"
    if row.interval is not None:
        text += f" [{row.interval[0]:{shape}}, {row.interval[1]:{shape}}]"
    num, of = (row.about.get(name, 0) for name in ("domains", "of_domains"))
    return text + (f" over {num} of {of} domains" if num < of else "")


def _caption(rows: Sequence[Row], benchmark: str) -> str:
    return _lines(
        f"{measured(*rows)}, {commits(rows)}: `python -m benchmarks run {benchmark}`.{_gate(rows)}"
    )


def _gate(rows: Sequence[Row]) -> str:
    """Returns the largest gap to the reference as text; empty if none was measured."""
    gates = [row.gate for row in rows if row.gate.gap is not None]
    if not gates:
        return ""
    worst = max(gates, key=lambda gate: gate.gap or 0)
    allowed = "" if not worst.tolerance else f", {worst.tolerance:.1g} allowed"
    return f" Check: {worst.checked}: {worst.gap:.1g} at most{allowed}."


def table(benchmark: str, *quantities: str) -> Callable[[Sequence[Row]], str]:
    """Returns a block with one line per case and program, one column per quantity, speed-ups."""

    def block(rows: Sequence[Row]) -> str:
        found = [
            row for row in _on_cpu(rows, benchmark) if not quantities or row.quantity in quantities
        ]
        if not found:
            return _nothing(benchmark)
        columns = list(dict.fromkeys((row.quantity, row.unit) for row in found))
        sides = list(dict.fromkeys(row.who for row in found if row.ratios))
        heads = ["case", "program", *(f"{quantity}, {unit}" for quantity, unit in columns)]
        heads += [f"speed-up of {side}" for side in sides]
        lines = []
        keys = dict.fromkeys((row.case, tuple(row.at.items()), row.who) for row in found)
        for case, at, who in keys:
            mine = [
                row
                for row in found
                if (row.case, tuple(row.at.items()), row.who) == (case, at, who)
            ]
            cells = [
                next((_cell(row) for row in mine if row.quantity == quantity), "")
                for quantity, _ in columns
            ]
            cells += [_ratio(found, case, side, who) for side in sides]
            lines.append([", ".join(part for part in (case, mine[0].sizes) if part), who, *cells])
        return "\n\n".join(
            [_caption(found, benchmark), markdown_table(heads, lines), *_slopes(found)]
        )

    return block


def _cell(row: Row) -> str:
    if row.unit == "%" or row.interval:
        return _statistic(row)
    return number(row.value) if row.repeats == 1 else between(row)


def _ratio(rows: Sequence[Row], case: str, side: str, peer: str) -> str:
    found: list[Spread] = [
        row.ratios[peer] for row in only(rows, case=case, who=side) if peer in row.ratios
    ]
    return between(found[0]) if found else ""


def _slopes(rows: Sequence[Row]) -> list[str]:
    """A table of fitted exponents, one line per series; empty if no series has three sizes."""
    found = [
        s
        for s in growth.series([row for row in rows if row.better != "higher"])
        if len(s.points) > 2
    ]
    lines = [
        [s.name.replace(" | ", ", "), s.size, slope(growth.fit(s.points)).removeprefix("slope ")]
        for s in found
    ]
    return (
        [markdown_table(["cost", "grows with", "exponent, 95% interval (1: proportional)"], lines)]
        if lines
        else []
    )


def models_table(rows: Sequence[Row]) -> str:
    """One line per family: both engines' differences, few-shot and 0-shot, and equal tokens."""
    found = _on_cpu(rows, "models")
    if not found:
        return _nothing("models")
    columns = [
        (engine, asked) for engine in ("transformers", "vllm") for asked in ("few-shot", "0-shot")
    ]
    heads = [
        "family",
        "class",
        *(f"{engine}, {asked}" for engine, asked in columns),
        "tokens of examples equal",
    ]
    tokens = [n for row in found for n in row.about["prompt_tokens"]]
    caption = (
        f"{measured(*found)}, {commits(found)}: `python -m benchmarks run models`. "
        f"{found[0].about['questions']} questions per family, {min(tokens)} to {max(tokens)} "
        "tokens per 5-shot prompt."
    )
    lines = []
    for case in dict.fromkeys(row.case for row in found):
        first = only(found, case=case)[0]
        cells = [
            next(
                (_gap(row) for row in only(found, case=case, who=f"ours {engine}", quantity=asked)),
                "not run",
            )
            for engine, asked in columns
        ]
        lines.append(
            [
                case,
                first.about["class"],
                *cells,
                f"{first.about['tokens_equal']} of {first.about['examples']}",
            ]
        )
    refused = {row.case: row.about["vllm"].strip() for row in found if "vllm" in row.about}
    reasons = (
        [markdown_table(["family", "why vLLM cannot run it here"], list(refused.items()))]
        if refused
        else []
    )
    return "\n\n".join([_lines(caption), markdown_table(heads, lines), *reasons])


def _gap(row: Row) -> str:
    flipped = row.about["flipped"]
    return f"{row.value:.1e}" + (f" ({flipped} predictions differ)" if flipped else "")


def fuzz_table(rows: Sequence[Row]) -> str:
    """Counts of the benchmark fuzz: one line per kind of input, and their sum."""
    found = _on_cpu(rows, "fuzz")
    if not found:
        return _nothing("fuzz")
    kinds, columns = (
        list(dict.fromkeys(names))
        for names in ((row.case for row in found), (row.quantity for row in found))
    )
    counts = {(row.case, row.quantity): round(row.value) for row in found}
    lines = [[kind, *(f"{counts[kind, column]:,}" for column in columns)] for kind in kinds]
    sums = [f"{sum(counts[kind, column] for kind in kinds):,}" for column in columns]
    table = markdown_table(["kind", *columns], [*lines, ["all", *sums]])
    return f"{_caption(found, 'fuzz')}\n\n{table}"


def goals_table(rows: Sequence[Row]) -> str:
    return markdown_table(["goal", "result", "benchmark"], goals.results(rows))


BLOCKS: dict[str, Callable[[Sequence[Row]], str]] = {
    "speed": speed_table,
    **{name: partial(experiment_table, name) for name in ("demo", "real", "screen-training")},
    "screen-training-sets": screened_sets_table,
    **{f"{name}-time": table(name, "seconds") for name in ("demo", "real")},
    "real-consistency": consistency_table,
    "real-measures": measures_table,
    "real-transitions": transitions_table,
    "fuzz": fuzz_table,
    "goals": goals_table,
    "models": models_table,
    "classes": classes_table,
    "kills": kills_table,
    "soak": soak_table,
    **gpu.BLOCKS,
    **intervals.BLOCKS,
    **{f"{name}-table": table(name) for name in BENCHMARKS if name not in _OWN_BLOCKS},
}
