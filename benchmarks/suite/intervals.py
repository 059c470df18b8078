"""Tables and picture of the simulated intervals, from results/intervals.json."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from benchmarks.suite.markdown import COMMIT_LETTERS, markdown_table
from benchmarks.suite.registry import CHECKOUT, results_folder
from benchmarks.suite.rows import Row
from ift_scale.io.files import write_text

LOW, HIGH = 0.93, 0.97
PICTURE = CHECKOUT / "docs" / "images" / "intervals.svg"
_MEASURES = {"mean_covered": "a setting's mean", "covered": "a paired difference"}


def _runs() -> dict[str, Any]:
    path = results_folder() / "intervals.json"
    runs: dict[str, Any] = json.loads(path.read_text())["rows"] if path.is_file() else {}
    return runs


def _table(label: str) -> pd.DataFrame:
    return pd.DataFrame(_runs()[label]["rows"])


def _caption(*labels: str) -> str:
    runs = [_runs()[label] for label in labels]
    made = "; ".join(
        f"{run['date'][:10]}, {str(run['commit'])[:COMMIT_LETTERS]} ({label})"
        for label, run in zip(labels, runs, strict=True)
    )
    return f"{made}; {runs[0]['trials']:,} trials per case."


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def coverage_table(_: Sequence[Row]) -> str:
    """Coverage and width by number of seeds, before and now, over all cases of one domain."""
    now, before = _table("now"), _table("before")
    lines = []
    for column, name in _MEASURES.items():
        for seeds in sorted(now.seeds.unique()):
            chosen = (now.seeds == seeds) & (now.domains == 1) & now[column].notna()
            if not chosen.any():
                continue
            old, new = before[chosen], now[chosen]
            width = column.replace("covered", "half_width")
            lines.append(
                [name, str(seeds), str(len(new))]
                + [
                    f"{_percent(t[column].min())} / {_percent(t[column].mean())} / "
                    f"{_percent(t[column].max())}"
                    for t in (old, new)
                ]
                + [f"{(~t[column].between(LOW, HIGH)).sum()}" for t in (old, new)]
                + [f"{(new[width] / old[width]).mean():.2f}"]
            )
    heads = [
        "interval of", "seeds", "cases", "before: coverage in %, least / mean / most", "now",
        "before: outside 93 to 97", "now: outside", "width, now / before",
    ]  # fmt: skip
    return f"{_caption('now', 'before')}\n\n{markdown_table(heads, lines)}"


def domains_table(_: Sequence[Row]) -> str:
    """Coverage of differences over several domains, by what the domains' seeds have in common."""
    kinds = {
        "same seeds, effects independent in each domain": "common == 0 and same_seeds",
        "same seeds, the same effects": "common == 1 and same_seeds",
        "different seeds": "not same_seeds",
    }
    frames = [_table("before"), _table("now")]
    frames = [t[(t.domains > 1) & (t.difference == 0)] for t in frames]
    lines = []
    for name, chosen in kinds.items():
        old, new = (t.query(chosen) for t in frames)
        lines.append(
            [name, str(len(new))]
            + [f"{_percent(t.covered.min())} to {_percent(t.covered.max())}" for t in (old, new)]
            + [f"{(new.half_width.to_numpy() / old.half_width.to_numpy()).mean():.2f}"]
        )
    heads = ["", "cases", "before: coverage in %", "now", "width, now / before"]
    return markdown_table(heads, lines)


def power_table(_: Sequence[Row]) -> str:
    """How often an effect is found, before and now."""
    frames = [_table("before"), _table("now")]
    now = frames[1]
    lines = []
    for domains, difference in ((1, 0.05), (1, 0.1), (4, 0.05)):
        for seeds in (3, 5, 10):
            chosen = (now.domains == domains) & (now.difference == difference)
            chosen &= now.seeds == seeds
            old, new = (t[chosen].set_index("seed_sd").holds for t in frames)
            cells = [f"{100 * old[sd]:.0f} -> {100 * new[sd]:.0f}" for sd in new.index]
            lines.append([f"{100 * difference:.0f}", str(domains), str(seeds), *cells])
    sds = sorted(now[now.difference > 0].seed_sd.unique())
    heads = ["effect, points", "domains", "seeds", *(f"seed sd {100 * sd:g}" for sd in sds)]
    return markdown_table(heads, lines)


def correlations_table(_: Sequence[Row]) -> str:
    """How often a relation is reported, without one and with one."""
    found = _table("points").query("slope_sd == 0")
    null, real = found[found.slope == 0], found[found.slope > 0]
    lines = []
    for domains, ratios in found[["domains", "ratios"]].drop_duplicates().itertuples(index=False):
        chosen = f"domains == {domains} and ratios == {ratios}"
        none, some = null.query(chosen), real.query(chosen)
        rates = [f"{_percent(none[name].max())}" for name in ("p", "p_within", "excludes_zero")]
        rates += [f"{_percent(none[name].max())}" for name in ("verdict", "jackknife")]
        power = [
            f"{100 * some[some.apart == apart].jackknife.mean():.0f} -> "
            f"{100 * some[some.apart == apart].verdict.mean():.0f}"
            for apart in sorted(some.apart.unique())
        ]
        lines.append([str(domains), str(ratios), *rates, *power])
    heads = [
        "domains", "ratios", "p of t", "p within", "interval within", "verdict",
        "jackknife (before)", "found, domains alike", "found, domains apart",
    ]  # fmt: skip
    return f"{_caption('points')}\n\n{markdown_table(heads, lines)}"


def _if_stored(table: Callable[[Sequence[Row]], str], *labels: str) -> Callable[..., str]:
    """Returns the block's function; its text names the command if the labels are not stored."""

    def block(rows: Sequence[Row]) -> str:
        missing = [label for label in labels if label not in _runs()]
        if not missing:
            return table(rows)
        command = f"python -m benchmarks.simulate_intervals --label {missing[0]}"
        return f"No rows are stored yet: `{command}`."

    return block


BLOCKS: dict[str, Callable[[Sequence[Row]], str]] = {
    "interval-coverage": _if_stored(coverage_table, "now", "before"),
    "interval-domains": _if_stored(domains_table, "now", "before"),
    "interval-power": _if_stored(power_table, "now", "before"),
    "interval-correlations": _if_stored(correlations_table, "points"),
}


def picture() -> None:
    """Writes docs/images/intervals.svg: coverage of each case before (hollow) and now (filled)."""
    frames = {"before": _table("before"), "now": _table("now")}
    several = {name: t[(t.seeds > 1) & (t.difference == 0)] for name, t in frames.items()}
    order = several["before"].covered.sort_values(kind="stable").index
    parts = [_line(y, str(round(100 * y))) for y in (0.9, 0.93, 0.95, 0.97, 1.0)]
    for name, style in (
        ("before", 'fill="none" stroke="#b35900"'),
        ("now", 'fill="#1f6fb2" stroke="none"'),
    ):
        for place, index in enumerate(order):
            x, y = 50 + 700 * (place + 0.5) / len(order), _height(several[name].covered[index])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" {style}/>')
    words = (
        ("before", 560, "#b35900"),
        ("now", 640, "#1f6fb2"),
        ("coverage of a difference's 95% interval, in %; one case each, in the order of before",
         50, "#777"),
    )  # fmt: skip
    parts += [
        f'<text x="{x}" y="{300 if x == 50 else 20}" fill="{color}">{text}</text>'
        for text, x, color in words
    ]
    write_text(
        PICTURE,
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 310" font-family="sans-serif" '
        'font-size="13" role="img" aria-label="Coverage of each simulated case before and now">\n'
        '<rect width="780" height="310" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n",
    )


def _height(share: float) -> float:
    return 280 - (max(share, 0.88) - 0.88) / 0.12 * 250


def _line(share: float, text: str) -> str:
    y = _height(share)
    dashed = "" if share == 0.95 else ' stroke-dasharray="3 4"'
    return (
        f'<line x1="50" x2="750" y1="{y:.1f}" y2="{y:.1f}" stroke="#999"{dashed}/>'
        f'<text x="20" y="{y + 4:.1f}" fill="#777">{text}</text>'
    )
