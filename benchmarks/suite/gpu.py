"""The blocks of docs/gpu.md: tables of measurements on GPUs, and a list of those not yet run."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.suite.goals import judged
from benchmarks.suite.markdown import markdown_table
from benchmarks.suite.rows import OURS, Row, between, number, only
from ift_scale.estimate.memory import GIB

FIRST, PROBE, REST = (f"benchmarks/gpu/{name}.sh" for name in ("first", "probe", "rest"))
NOTHING = "Not yet measured on a GPU"


def _on_gpu(rows: Sequence[Row], benchmark: str | None = None) -> list[Row]:
    return [row for row in rows if row.device != "cpu" and benchmark in (None, row.benchmark)]


def _not_yet(command: str) -> str:
    return f"{NOTHING} (`{command}`)."


def _exact(row: Row) -> bool:
    return row.quantity.startswith("difference of ")


def machines(rows: Sequence[Row]) -> str:
    """One line per device and machine: dates and versions of what its rows were measured with."""
    found = _on_gpu(rows)
    if not found:
        return _not_yet(FIRST)
    lines = []
    for device, machine in dict.fromkeys((row.device, row.machine) for row in found):
        mine = only(found, device=device, machine=machine)
        versions: dict[str, set[str]] = {}
        for row in mine:
            for name, version in row.versions.items():
                versions.setdefault(name, set()).add(version)
        dates = sorted({row.date[:10] for row in mine})
        told = ", ".join(
            f"{name} {' and '.join(sorted(version))}" for name, version in sorted(versions.items())
        )
        commits = ", ".join(sorted({(row.commit or "no commit")[:7] for row in mine}))
        lines.append(
            [device, machine, " to ".join(dict.fromkeys((dates[0], dates[-1]))), commits, told]
        )
    return markdown_table(["GPU", "host", "date", "commit", "versions"], lines)


IMPLEMENTATIONS = {
    "plain": "PyTorch",
    "pytorch": "our reference",
    "compile": "torch.compile",
    "triton": "our Triton",
    "liger": "Liger-Kernel",
}


def kernels(rows: Sequence[Row]) -> str:
    """Milliseconds of forward and backward pass by op and shape; the fastest in bold."""
    found = only(_on_gpu(rows, "kernels"), quantity="milliseconds")
    if not found:
        return _not_yet(REST)
    names = [
        *IMPLEMENTATIONS,
        *dict.fromkeys(row.who for row in found if row.who not in IMPLEMENTATIONS),
    ]
    names = [name for name in names if any(row.who == name for row in found)]
    lines = []
    for device, case in dict.fromkeys((row.device, row.case) for row in found):
        times = {row.who: row.value for row in only(found, device=device, case=case)}
        best = min(times, key=lambda name: times[name])
        shown = {
            name: f"**{number(time)}**" if name == best else number(time)
            for name, time in times.items()
        }
        cells = [shown.get(name, "wrong or not run") for name in names]
        lines.append([device, case, *cells])
    return markdown_table(
        [
            "GPU",
            "op, type and shape",
            *(f"{IMPLEMENTATIONS.get(name, name)}, ms" for name in names),
        ],
        lines,
    )


def train(rows: Sequence[Row]) -> str:
    """One line per case and program, with the ratio of our tokens per second to TRL's."""
    found = _on_gpu(rows, "train")
    speeds = only(found, quantity="tokens per second")
    if not speeds:
        return _not_yet(FIRST)
    lines = []
    for row in speeds:
        same = only(found, case=row.case, who=row.who, device=row.device)
        peers = [
            r
            for r in only(speeds, case=row.case, device=row.device)
            if r.who != row.who and r.who != OURS
        ]
        against = (
            "; ".join(f"{row.value / peer.value:.2f} times {peer.who}" for peer in peers)
            if row.who == OURS
            else ""
        )
        settings: Mapping[str, Any] = row.about.get("settings", {})
        lines.append([
            row.device,
            row.case,
            row.who,
            str(settings.get("zero_stage", "")),
            str(settings.get("activation_checkpointing", "")),
            {True: "on", False: "off"}.get(settings.get("compile"), ""),  # type: ignore[arg-type]
            *(str(row.about.get(name, "")) for name in ("kernels", "optimizer", "attention")),
            between(row),
            _value(same, "seconds per step", number),
            _value(same, "share of the matrix rate", lambda value: f"{value:.1%}"),
            against,
        ])  # fmt: skip
    heads = [
        "GPU",
        "case",
        "program",
        "ZeRO",
        "checkpointing",
        "compile",
        "kernels",
        "optimizer",
        "attention",
        "tokens per second",
    ]
    heads += ["s per step", "share of the matrix rate", "against TRL"]
    return markdown_table(heads, lines)


def _value(rows: Sequence[Row], quantity: str, shown: Callable[[float], str]) -> str:
    return next((shown(row.value) for row in rows if row.quantity == quantity), "")


def memory(rows: Sequence[Row]) -> str:
    """Peak of a training step as allocated by torch, compared with the memory model."""
    found = [row for row in _on_gpu(rows, "train") if row.who == OURS]
    peaks = only(found, quantity="peak memory")
    if not peaks:
        return _not_yet(FIRST)
    lines = []
    for row in peaks:
        same = [r for r in only(found, case=row.case, device=row.device) if r.unit == "B"]
        gib = {r.quantity: r.value / GIB for r in same}
        measured, predicted = gib["peak memory"], gib.get("estimated memory", math.nan)
        reserved = gib.get("peak reserved memory", math.nan)
        lines.append(
            [
                row.device,
                row.case,
                f"{measured:.2f}",
                f"{predicted:.2f}",
                f"{predicted / measured - 1:+.1%}",
                f"{reserved:.2f}",
            ]
        )
    return markdown_table(
        ["GPU", "case", "measured peak, GiB", "predicted, GiB", "error", "reserved by torch, GiB"],
        lines,
    )


def exact(rows: Sequence[Row]) -> str:
    """Differences of losses and gradient from plain transformers, by setting."""
    found = [row for row in _on_gpu(rows, "train") if _exact(row)]
    if not found:
        return _not_yet(REST)
    lines = []
    for device, case in dict.fromkeys((row.device, row.case) for row in found):
        mine = {
            row.quantity.removeprefix("difference of "): row
            for row in only(found, device=device, case=case)
        }
        told = [
            f"{mine[n].value:.1e} ({mine[n].gate.tolerance:.0e})" if n in mine else ""
            for n in ("losses", "gradient")
        ]
        lines.append([device, case.removeprefix("exact "), *told])
    return markdown_table(
        ["GPU", "type and setting", "losses (allowed)", "gradient (allowed)"], lines
    )


def probe(rows: Sequence[Row]) -> str:
    """Questions per second, compared with the matrix rate's limit and one request per option."""
    found = _on_gpu(rows, "probe")
    ours = [
        row
        for row in only(found, quantity="questions per second")
        if row.about.get("limit_questions_per_second")
    ]
    if not ours:
        return _not_yet(FIRST)
    lines = []
    for row in ours:
        limit = row.about["limit_questions_per_second"]
        ratio = "; ".join(f"{between(spread)} times {peer}" for peer, spread in row.ratios.items())
        asked = (
            f"{row.about['questions']:,} of {row.about['mean_prompt_tokens']:,.0f} tokens"
            if "questions" in row.about
            else ""
        )
        share = f"{row.value / limit:.1%}" if row.who.startswith(OURS) else ""
        lines.append(
            [row.device, row.case, row.who, asked, between(row), number(limit), share, ratio]
        )
    heads = [
        "GPU",
        "case",
        "program",
        "questions",
        "questions per second",
        "limit",
        "share of the limit",
        "against",
    ]
    return markdown_table(heads, lines)


def _share(row: Row) -> bool:
    return (
        row.benchmark == "train"
        and row.quantity == "share of the matrix rate"
        and row.case.startswith("7b")
    )


def goals(rows: Sequence[Row]) -> str:
    """The goals for one GPU and the results."""
    found = _on_gpu(rows)
    speeds = only(_on_gpu(rows, "train"), quantity="tokens per second")
    trl = {
        f"{row.case}, {peer.who}": row.value / peer.value
        for row in only(speeds, who=OURS)
        for peer in only(speeds, case=row.case, device=row.device)
        if peer.who.startswith("TRL")
    }
    mfu = {row.case: 100 * row.value for row in found if _share(row)}
    probing = {
        row.case: 100 * row.value / row.about["limit_questions_per_second"]
        for row in only(_on_gpu(rows, "probe"), quantity="questions per second")
        if row.who.startswith(OURS)
    }
    came = {
        "7B training: 65% of the matrix rate measured in the same run": judged(mfu, 65, " percent"),
        "1.3 times TRL with Liger-Kernel's tokens per second": judged(trl, 1.3),
        "peak memory of a training step within 10% of the memory model": _memory_goal(rows),
        "probing: 70% of the limit that the matrix rate sets": judged(probing, 70, " percent"),
    }
    return markdown_table(
        ["goal", "result"], [[goal, text or "not measured"] for goal, text in came.items()]
    )


def _memory_goal(rows: Sequence[Row]) -> str | None:
    mine = [row for row in _on_gpu(rows, "train") if row.who == OURS]
    predicted = {
        (row.case, row.device): row.value for row in only(mine, quantity="estimated memory")
    }
    peaks = [
        row for row in only(mine, quantity="peak memory") if (row.case, row.device) in predicted
    ]
    errors = [predicted[row.case, row.device] / row.value - 1 for row in peaks]
    if not errors:
        return None
    verdict = "" if max(map(abs, errors)) <= 0.1 else "**not met**: "
    return f"{verdict}{min(errors):+.0%} to {max(errors):+.0%} over {len(errors)} cases"


def _ours(row: Row, case: str) -> bool:
    """True for our training step in a case that begins so."""
    return row.benchmark == "train" and row.who == OURS and row.case.startswith(case)


EXPECTED: dict[str, Callable[[Row], bool]] = {
    f"kernel speeds: ours, Liger-Kernel, torch.compile, PyTorch (`{REST}`)": lambda row: row.benchmark == "kernels",
    f"packed training compared with plain transformers under every setting (`{REST}`)": _exact,
    f"training steps of 1B (`{FIRST}`)": lambda row: row.case == "1b bfloat16" and row.who == OURS,
    f"training steps of 7B, the whole model on a card with 140 GiB (`{FIRST}`)": lambda row: _ours(row, "7b "),
    f"training steps of some layers of 7B on a card with 80 GiB (`{FIRST}`)": lambda row: _ours(row, "7b, "),
    f"training steps of 3B (`{REST}`)": lambda row: _ours(row, "3b"),
    f"training steps of 1B under other settings (`{REST}`)": lambda row: _ours(row, "1b bfloat16, "),
    f"TRL on the same tokens (`{FIRST}`)": lambda row: row.who.startswith("TRL"),
    f"probing MMLU on a 7B shape (`{FIRST}`, `{PROBE}`)": lambda row: row.benchmark == "probe" and row.who.startswith(OURS),
    f"one request per option on the same shape (`{FIRST}`, `{PROBE}`)": lambda row: row.who == "one request an option",
    "several GPUs and several nodes: ZeRO over NCCL, `train.hpz`, tensor-parallel engines": lambda row: row.benchmark == "scaling",
}  # fmt: skip


def missing(rows: Sequence[Row]) -> str:
    """A list of the measurements that no GPU has run."""
    found = _on_gpu(rows)
    left = [what for what, is_it in EXPECTED.items() if not any(is_it(row) for row in found)]
    items = (
        textwrap.fill(f"- {what}", 100, subsequent_indent="  ", break_on_hyphens=False)
        for what in left
    )
    text = "\n".join(items)
    return (
        f"{NOTHING}:\n\n{text}" if left else "All measurements listed on this page have been run."
    )


BLOCKS: dict[str, Callable[[Sequence[Row]], str]] = {
    "gpu-goals": goals,
    "gpu-machines": machines,
    "gpu-kernels": kernels,
    "gpu-train": train,
    "gpu-memory": memory,
    "gpu-exact": exact,
    "gpu-probe": probe,
    "gpu-missing": missing,
}
