"""The figures of README.md and docs/results.md, written from stored rows between `<!-- bench:NAME -->` and `<!-- /bench -->`."""

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.suite import goals, gpu, growth
from benchmarks.suite.page import place_of, slope
from benchmarks.suite.registry import BENCHMARKS, CHECKOUT, results_folder
from benchmarks.suite.rows import OURS, Row, Spread, between, number, only, read
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.io.files import write_text
from ift_scale.treatments import treatment

DOCUMENTS = ("README.md", "docs/results.md", "docs/models.md", "docs/gpu.md")
_BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
_WIDTH = 145


def refresh() -> list[Path]:
    """Write the blocks anew; the files that changed."""
    changed = stale()
    rows = read(results_folder())
    for path in changed:
        write_text(path, filled(path, path.read_text(encoding="utf-8"), rows))
    return changed


def stale() -> list[Path]:
    """The documents whose blocks are not what the rows say."""
    rows = read(results_folder())
    paths = [CHECKOUT / name for name in DOCUMENTS]
    return [
        path
        for path in paths
        if (text := path.read_text(encoding="utf-8")) != filled(path, text, rows)
    ]


def filled(path: Path, text: str, rows: Sequence[Row]) -> str:
    """The text with every block as the rows say; DataError for a block that is not known."""

    def block(found: re.Match[str]) -> str:
        name = found[2]
        if name not in BLOCKS:
            raise DataError(
                Place(path), "no such block of figures", did_you_mean(name, BLOCKS), name
            )
        return f"{found[1]}{BLOCKS[name](rows)}\n{found[3]}"

    return _BLOCK.sub(block, text)


def _lines(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _on_cpu(rows: Sequence[Row], benchmark: str) -> list[Row]:
    return only(rows, benchmark=benchmark, device="cpu")


def where(row: Row) -> str:
    """`2026-11-22, Intel Xeon, 2 cores`."""
    return f"{row.date[:10]}, {place_of(row)}"


def _nothing(benchmark: str) -> str:
    return f"Nothing is stored yet: `python -m benchmarks run {benchmark}`."


def times(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


# README.md: sentences.


def probe_sentence(rows: Sequence[Row]) -> str:
    found, pipeline = _on_cpu(rows, "probe"), _on_cpu(rows, "pipeline")
    ours = {row.case: row for row in only(found, who="ours transformers")}
    if "float32" not in ours:
        return _nothing("probe")
    first = ours["float32"]
    by = [
        times(first.ratios[peer].value) for peer in ("authors' loop", "lm-eval hf", "lm-eval vllm")
    ]
    more = ""
    if "bfloat16" in ours:
        others = [times(ours["bfloat16"].ratios[peer].value) for peer in first.ratios]
        more = f"; bfloat16 {', '.join(others[:-1])} and {others[-1]}"
    text = (
        f"{first.about['questions']} real MMLU 5-shot prompts through a 22-million-parameter Llama: {by[0]} times the questions a "
        f"second of the authors' loop, {by[1]} times lm-evaluation-harness' hf backend and {by[2]} times its vllm backend "
        f"(float32, medians of {first.repeats}{more}), with {1 - (first.gate.gap or 0):.1%} of the predictions the same in float32 "
        f"({where(first)})."
    )
    sustained = only(pipeline, case="sustained")
    peaks = [row for row in only(pipeline, quantity="peak memory") if row.at]
    if sustained and peaks:
        largest = max(peaks, key=lambda row: row.at["questions"])
        text += (
            f" Without an engine the pipeline sustains {round(sustained[0].value, -2):,.0f} questions a second a core, and "
            f"{largest.at['questions']:,.0f} questions take {largest.value:,.0f} MiB ({where(sustained[0])})."
        )
    return _lines(text)


def train_sentence(rows: Sequence[Row]) -> str:
    ours = only(_on_cpu(rows, "train"), who=OURS, quantity="tokens per second", case="float32")
    peers = ("paper's recipe", "TRL", "TRL, plain loss")
    if not ours or not ours[0].ratios.keys() >= set(peers):
        return _nothing("train")
    row = ours[0]
    recipe, trl, plain = (times(row.ratios[peer].value) for peer in peers)
    supervised = row.about["workload"]["supervised_share"]
    return _lines(
        "Two ranks, ZeRO-2, float32, a 22-million-parameter Llama on the authors' engineering set with explanations "
        f"({supervised:.0%} of the tokens supervised): {recipe} times the tokens a second of the paper's recipe (HF Trainer, "
        f"padded to 2,048), {trl} times TRL 1.16 in its best setting, {plain} times TRL with transformers' own loss put in, with "
        f"the same loss curves ({where(row)})."
    )


def end_to_end_sentence(rows: Sequence[Row]) -> str:
    found = _on_cpu(rows, "end-to-end")
    speeds = only(found, who=OURS, quantity="tokens per second")
    if not speeds:
        return _nothing("end-to-end")
    ratio = [times(row.ratios["TRL"].value) for row in speeds]
    told = []
    for row in only(found, who=OURS, quantity="accuracy"):
        theirs = only(found, who="TRL", quantity="accuracy", case=row.case)[0]
        told.append(f"{row.case} {_statistic(row)} and {_statistic(theirs)}")
    return _lines(
        f"The same arms trained by ours and by TRL: {' / '.join(ratio)} times TRL's tokens a second "
        f"({', '.join(row.case for row in speeds)}), HOMO accuracy in percent of ours and of TRL's: {'; '.join(told)} "
        f"({where(speeds[0])})."
    )


def gpu_sentence(rows: Sequence[Row]) -> str:
    """What ran on GPUs: tokens per second of training by shape and program, questions per second of probing."""
    found = [row for row in rows if row.device != "cpu"]
    speeds = [
        r
        for r in only(found, benchmark="train", quantity="tokens per second")
        if r.case.endswith("bfloat16")
    ]
    if not found:
        return f"{gpu.NOTHING} (`{gpu.FIRST}`; [docs/gpu.md](docs/gpu.md))."
    told = [f"{row.case}, {row.who}: {row.value:,.0f} tokens per second" for row in speeds]
    for row in only(found, benchmark="probe", quantity="questions per second"):
        told.append(f"{row.case}, {row.who}: {row.value:,.0f} questions per second")
    return _lines(f"On a GPU ({where(found[0])}; [docs/gpu.md](docs/gpu.md)): {'; '.join(told)}.")


def demo_table(rows: Sequence[Row]) -> str:
    found = [row for row in _on_cpu(rows, "demo") if row.unit == "%"]
    if not found:
        return _nothing("demo")
    groups = list(dict.fromkeys(row.case for row in found))
    lines = [f"{where(found[0])}:", "", _row(["", *groups]), _row(["---"] * (len(groups) + 1))]
    for who in dict.fromkeys(row.who for row in found):
        cells = [
            _statistic(*only(found, who=who, case=group))
            if only(found, who=who, case=group)
            else ""
            for group in groups
        ]
        lines.append(_row([_setting(who), *cells]))
    return "\n".join(lines)


def _setting(who: str) -> str:
    if who == "base":
        return "base model, 5-shot"
    parts = [treatment(part) for part in who.split(" - ")]
    return (
        f"{parts[0].short} {parts[0].label}"
        if len(parts) == 1
        else " - ".join(part.short for part in parts)
    )


def _statistic(row: Row) -> str:
    """`55.7 [50.9, 60.5]`, signed where it is a difference; what is no percentage with three places.

    A mean over fewer domains than the run has says so.
    """
    shape = ("+" if "difference" in row.quantity else "") + (".1f" if row.unit == "%" else ".3f")
    text = f"{row.value:{shape}}"
    if row.interval is not None:
        text += f" [{row.interval[0]:{shape}}, {row.interval[1]:{shape}}]"
    num, of = (row.about.get(name, 0) for name in ("domains", "of_domains"))
    return text + (f" over {num} of {of} domains" if num < of else "")


# docs/results.md: tables.


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _heading(rows: Sequence[Row], benchmark: str) -> str:
    commit = (rows[0].commit or "no commit")[:7]
    gaps = [
        (row.gate.checked, row.gate.gap, row.gate.tolerance)
        for row in rows
        if row.gate.gap is not None
    ]
    text = f"{where(rows[0])}, {commit}: `python -m benchmarks run {benchmark}`."
    if gaps:
        worst = max(gaps, key=lambda gap: gap[1] or 0)
        allowed = "" if not worst[2] else f", {worst[2]:.1g} allowed"
        text += f" Checked: {worst[0]}; {worst[1]:.1g} at most{allowed}."
    return _lines(text)


def table(benchmark: str, *quantities: str) -> Callable[[Sequence[Row]], str]:
    """A block: a line a case and program, a column a quantity, and how many times better each of ours did than it."""

    def block(rows: Sequence[Row]) -> str:
        found = [
            row for row in _on_cpu(rows, benchmark) if not quantities or row.quantity in quantities
        ]
        if not found:
            return _nothing(benchmark)
        columns = list(dict.fromkeys((row.quantity, row.unit) for row in found))
        sides = list(dict.fromkeys(row.who for row in found if row.ratios))
        heads = ["case", "program", *(f"{quantity}, {unit}" for quantity, unit in columns)]
        heads += [f"{side} is better by" for side in sides]
        lines = [_heading(found, benchmark), "", _row(heads), _row(["---"] * len(heads))]
        for case, at, who in dict.fromkeys(
            (row.case, tuple(row.at.items()), row.who) for row in found
        ):
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
            lines.append(
                _row([", ".join(part for part in (case, mine[0].sizes) if part), who, *cells])
            )
        return "\n".join(lines + _slopes(found))

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
    """How the costs grow, a line a series."""
    found = [
        s
        for s in growth.series([row for row in rows if row.better != "higher"])
        if len(s.points) > 2
    ]
    lines = [f"- {s.name} over {s.size}: {slope(growth.fit(s.points))}" for s in found]
    return (
        ["", "Fitted powers (1 is proportional growth), 95% intervals:", "", *lines]
        if lines
        else []
    )


def models_table(rows: Sequence[Row]) -> str:
    """One line per family: differences of both engines, few-shot and 0-shot, and equal tokens of the export."""
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
    about = (
        f"{where(found[0])}, {(found[0].commit or 'no commit')[:7]}: `python -m benchmarks run models`. "
        f"Largest difference of an option's log-probability, in nats, from a forward pass of batch 1 in float32; "
        f"{found[0].about['questions']} questions per family, "
        f"{min(tokens)} to {max(tokens)} tokens per 5-shot prompt."
    )
    lines = [_lines(about), "", _row(heads), _row(["---"] * len(heads))]
    for case in dict.fromkeys(row.case for row in found):
        first = only(found, case=case)[0]
        cells = [
            next(
                (_gap(row) for row in only(found, case=case, who=f"ours {engine}", quantity=asked)),
                "not run: see below",
            )
            for engine, asked in columns
        ]
        equal = f"{first.about['tokens_equal']} of {first.about['examples']}"
        lines.append(_row([case, first.about["class"], *cells, equal]))
    refused = {row.case: row.about["vllm"] for row in found if "vllm" in row.about}
    return "\n".join(
        [
            *lines,
            *([""] if refused else []),
            *(f"- {case}: vLLM does not run it here: {why}" for case, why in refused.items()),
        ]
    )


def _gap(row: Row) -> str:
    flipped = row.about["flipped"]
    return f"{row.value:.1e}" + (f" ({flipped} predictions differ)" if flipped else "")


def goals_table(rows: Sequence[Row]) -> str:
    return "\n".join(
        [
            _row(["goal", "came", "where"]),
            _row(["---"] * 3),
            *(_row(line) for line in goals.told(rows)),
        ]
    )


BLOCKS: dict[str, Callable[[Sequence[Row]], str]] = {
    "probe": probe_sentence,
    "train": train_sentence,
    "end-to-end": end_to_end_sentence,
    "gpu": gpu_sentence,
    "demo": demo_table,
    "demo-time": table("demo", "seconds"),
    "goals": goals_table,
    "models": models_table,
    **gpu.BLOCKS,
    **{
        f"{name}-table": table(name)
        for name in BENCHMARKS
        if name not in ("demo", "simulator", "models")
    },
}
