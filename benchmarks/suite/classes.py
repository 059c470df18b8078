"""The table of every causal language model class in docs/models.md, from the rows of `classes`."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.suite.markdown import commits, markdown_table, measured
from benchmarks.suite.rows import Row, Spread, number, only

PATHS = ("pruned", "packed", "padded", "single")
"""Training paths, fastest first."""
_STRATEGIES = {
    "shared-prefix attention": "shared prefix",
    "padded batches with a cached prefix": "cached prefix",
    "padded batches": "padded",
}
"""Scoring strategies, fastest first, and their names in the table."""
_ALONE = "one row"
LOSS_TOLERANCE = 1e-3
"""Largest relative difference of a step's loss between trainers."""
_REASON = 110
_HEADS = (
    *("model type", "class", "path", "difference", "proof, s", "scoring", "nats"),
    *("speed-up of one at a time", "of TRL", "vLLM, nats", "why no faster path"),
)


def classes_table(rows: Sequence[Row]) -> str:
    """One line per model type; then those that are not trained or built, with the reason."""
    found = only(rows, benchmark="classes", device="cpu")
    if not found:
        return "No rows are stored yet: `python -m benchmarks run classes`."
    proofs = only(found, quantity="proof")
    trained = [row for row in proofs if "path" in row.about]
    blocks = [_caption(found, trained), markdown_table(["path", "classes"], _counts(trained))]
    lines = [_line(row, found) for row in trained]
    blocks.append(markdown_table(_HEADS, lines))
    refused = [[row.case, _refusal(row.about)] for row in proofs if row not in trained]
    if refused:
        blocks.append(markdown_table(["model type", "why it is not trained"], refused))
    return "\n\n".join(blocks)


def _caption(found: Sequence[Row], trained: Sequence[Row]) -> str:
    seconds = sorted(row.value for row in trained)
    cached = max(row.about["cached_seconds"] for row in trained)
    gap = max(row.gate.gap or 0 for row in trained)
    loosest = max(row.gate.tolerance or 0 for row in trained)
    text = (
        f"{measured(*found)}, {commits(found)}: `python -m benchmarks run classes`. "
        f"{len({row.about['class'] for row in trained})} classes, {len(trained)} model types. "
        f"Largest difference of a chosen path: {gap:.1e} ({loosest:.0e} allowed at most). A proof "
        f"takes {number(seconds[len(seconds) // 2])} s (median), {number(seconds[-1])} s at most, "
        f"and {number(cached)} s at most from the cache."
    )
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _counts(trained: Sequence[Row]) -> list[list[str]]:
    """Returns (path, number of classes); a class with several model types counts once."""
    by_class = {row.about["class"]: row.about["path"] for row in trained}
    counts = Counter(by_class.values())
    return [[path, str(counts[path])] for path in PATHS if counts[path]]


def _line(row: Row, found: Sequence[Row]) -> list[str]:
    about = row.about
    speeds = only(found, case=row.case, quantity="tokens per second", who="ours")
    vllm = [each.about for each in only(found, case=row.case, who="vllm")]
    ratios: dict[str, Spread] = speeds[0].ratios if speeds else {}
    path = about["path"] + (", own head" if about["own_head"] else "")
    return [
        row.case,
        about["class"],
        path,
        f"{about['difference']:.0e}",
        number(row.value),
        _strategy(about),
        _nats(about, "scoring"),
        _ratio(ratios, about, "one example at a time", about.get("speed_error")),
        _ratio(ratios, about, "TRL", about.get("trl_error")),
        _nats(vllm[0] if vllm else {}, "vllm"),
        _why(about["rejected"]),
    ]


def _strategy(about: dict[str, Any]) -> str:
    used = about.get("strategies", [])
    return next((short for name, short in _STRATEGIES.items() if name in used), _ALONE)


def _nats(about: dict[str, Any], engine: str) -> str:
    if f"{engine}_gap" in about:
        return f"{about[f'{engine}_gap']:.0e}"
    return "fails" if f"{engine}_error" in about else "not run"


def _ratio(ratios: dict[str, Spread], about: dict[str, Any], who: str, error: str | None) -> str:
    if who not in ratios:
        return "fails" if error else "not run"
    differs = about["loss_gaps"][who] > LOSS_TOLERANCE
    return f"{ratios[who].value:.1f}" + (" (losses differ)" if differs else "")


def _why(rejected: dict[str, str]) -> str:
    """Returns the reason against the next faster path only: it is the one to remove."""
    return _cell(next(reversed(rejected.values()), ""))


def _refusal(about: dict[str, Any]) -> str:
    return _cell(about.get("build_error") or about["proof_error"], 2 * _REASON)


def _cell(text: str, width: int = _REASON) -> str:
    """Returns a text for one cell of a table."""
    return textwrap.shorten(text.replace("|", "/"), width, placeholder=" ...")
