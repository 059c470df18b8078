"""The report's pictures, as SVG text that stands in the page itself."""

import io
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ift_scale.records import LETTERS
from ift_scale.report import live as live_table

matplotlib.use("svg")
matplotlib.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "ift-scale",
        "font.family": "sans-serif",
    }
)

LABELS = {"harmonious": "H harmonious", "incompatible": "I incompatible", "self_aligning": "S self-aligning"}
COLORS = {"harmonious": "#2a7f9e", "incompatible": "#c8553d", "self_aligning": "#d9a21b"}
GRADE_COLORS = {"HighlyKnown": "#2a7f9e", "MaybeKnown": "#6fae75", "WeaklyKnown": "#d9a21b", "Unknown": "#c8553d"}
SHORT = {"harmonious": "H", "incompatible": "I", "self_aligning": "S"}
_ALL = "all"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _overall(table: pd.DataFrame) -> pd.DataFrame:
    """Rows over all domains, or the only domain's where there is one."""
    return table[table.domain == _ALL] if (table.domain == _ALL).any() else table


def _error_bars(value: float, low: float, high: float) -> list[list[float]]:
    """Distances to the limits; an interval of no width may miss its own mean by a rounding."""
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _by_group(settings: pd.DataFrame, draw: Callable[[Axes, str, pd.DataFrame], None], ylabel: str) -> str:
    groups = list(dict.fromkeys(settings.group))
    figure = Figure(figsize=(2.6 * len(groups) + 1, 3.2))
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axis, group in zip(axes, groups, strict=True):
        draw(axis, group, _overall(settings)[lambda t, g=group: t.group == g])
        axis.set_title(group)
    axes[0].set_ylabel(ylabel)
    return _svg(figure)


def accuracy(settings: pd.DataFrame, arms: pd.DataFrame, base: pd.DataFrame, chance: float) -> str:
    """Accuracy by setting and group, a point a seed and domain, with the base model and chance as lines."""

    def draw(axis: Axes, group: str, rows: pd.DataFrame) -> None:
        for place, row in enumerate(rows.itertuples()):
            error = _error_bars(row.accuracy, row.accuracy_low, row.accuracy_high)
            axis.bar(place, row.accuracy, 0.62, color=COLORS[row.setting], alpha=0.85, yerr=error, capsize=4, ecolor="#333")
            points = arms[(arms.setting == row.setting) & (arms.group == group)].accuracy.to_numpy()
            axis.scatter(place + np.linspace(-0.2, 0.2, len(points)), points, s=9, color="#333", alpha=0.55, zorder=3)
        axis.axhline(
            base[base.group == group].accuracy.mean(), color="#444", linestyle="--", linewidth=1, label="base model, few-shot"
        )
        axis.axhline(chance, color="#999", linestyle=":", linewidth=1, label="chance")
        axis.set_xticks(range(len(rows)), [SHORT[s] for s in rows.setting])
        axis.set_ylim(0, 1)
        if group == rows.group.iloc[0] == settings.group.iloc[0]:
            axis.legend(frameon=False, fontsize=7, loc="upper right")

    return _by_group(settings, draw, "accuracy")


def measure(settings: pd.DataFrame, name: str, label: str) -> str:
    """One measure's mean and interval by setting and group."""

    def draw(axis: Axes, group: str, rows: pd.DataFrame) -> None:
        for place, row in enumerate(rows.to_dict("records")):
            value = row[name]
            error = _error_bars(value, row[f"{name}_low"], row[f"{name}_high"])
            axis.errorbar(place, value, yerr=error, fmt="o", color=COLORS[row["setting"]], capsize=4)
        axis.set_xticks(range(len(rows)), [SHORT[s] for s in rows.setting])
        axis.margins(x=0.3)
        axis.grid(axis="y", alpha=0.25)

    return _by_group(settings, draw, label)


def differences(comparisons: pd.DataFrame) -> str:
    """Paired differences with their intervals: a forest plot over domains and groups."""
    rows = comparisons.iloc[::-1].reset_index(drop=True)
    figure = Figure(figsize=(6.5, 0.24 * len(rows) + 1))
    axis = figure.subplots()
    for place, row in enumerate(rows.itertuples()):
        color = "#222" if row.excludes_zero else "#aaa"
        axis.plot([row.difference_low, row.difference_high], [place, place], color=color, linewidth=1.6)
        axis.plot(row.difference, place, "o", color=color, markersize=4)
    axis.axvline(0, color="#c8553d", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [f"{SHORT[r.first]} - {SHORT[r.second]}  {r.domain}  {r.group}" for r in rows.itertuples()])
    axis.tick_params(axis="y", labelsize=7)
    axis.set_xlabel("difference of accuracy (grey: the interval holds zero)")
    axis.grid(axis="x", alpha=0.25)
    return _svg(figure)


def consistency_against_accuracy(arms: pd.DataFrame) -> str:
    """A point an arm and group: how much of the base model's ranking is kept, and how well it answers."""
    figure = Figure(figsize=(4.6, 3.4))
    axis = figure.subplots()
    markers = {"HOMO": "o", "ID": "s", "OOD": "^"}
    for (setting, group), part in arms.groupby(["setting", "group"], sort=False):
        label = f"{SHORT[setting]} {group}"
        axis.scatter(part.consistency, part.accuracy, s=18, marker=markers[group], color=COLORS[setting], alpha=0.75, label=label)
    axis.set_xlabel("consistency with the base model (rank correlation)")
    axis.set_ylabel("accuracy")
    axis.legend(frameon=False, fontsize=7, ncols=2)
    axis.grid(alpha=0.25)
    return _svg(figure)


def losses(curves: dict[str, list[float]], settings: dict[str, str]) -> str:
    """Training loss by step, a line an arm."""
    figure = Figure(figsize=(4.6, 3.0))
    axis = figure.subplots()
    for name, values in curves.items():
        axis.plot(range(1, len(values) + 1), values, color=COLORS[settings[name]], alpha=0.5, linewidth=0.9)
    for setting in dict.fromkeys(settings.values()):
        axis.plot([], [], color=COLORS[setting], label=LABELS[setting])
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("loss, nats a token")
    axis.legend(frameon=False, fontsize=7)
    axis.grid(alpha=0.25)
    return _svg(figure)


def _with_band(axis: Axes, arms: pd.DataFrame, measure: str, color: str) -> None:
    found = live_table.curve(arms, measure)
    axis.plot(found.step, found["mean"], color=color, linewidth=1.2, marker="o", markersize=2.5)
    axis.fill_between(found.step, found.low, found.high, color=color, alpha=0.15, linewidth=0)


def _named(axis: Axes, colors: dict[str, str]) -> None:
    """A legend of lines, drawn in this panel or not."""
    for name, color in colors.items():
        axis.plot([], [], color=color, label=name)
    axis.legend(frameon=False, fontsize=7)


def live(found: pd.DataFrame) -> str:
    """Live knowledge by step: a row of panels a domain, a panel a measure, a line a setting with a band over seeds."""
    domains = list(dict.fromkeys(found.domain))
    figure = Figure(figsize=(9.0, 2.1 * len(domains) + 0.6), layout="constrained")
    axes = figure.subplots(len(domains), len(live_table.MEASURES), sharey="col", squeeze=False)
    for row, domain in zip(axes, domains, strict=True):
        for axis, (measure, label) in zip(row, live_table.MEASURES.items(), strict=True):
            for setting, arms in found[found.domain == domain].groupby("setting", sort=False):
                _with_band(axis, arms, measure, COLORS[str(setting)])
            axis.set_title(f"{domain}: {label}", fontsize=8)
            axis.grid(alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("optimizer step")
    _named(axes[0, 0], {LABELS[setting]: COLORS[setting] for setting in dict.fromkeys(found.setting)})
    return _svg(figure)


def live_grades(found: pd.DataFrame) -> str:
    """Accuracy of live knowledge by what the probe held the base model to know: a row of panels a domain, a panel a setting."""
    domains, settings = list(dict.fromkeys(found.domain)), list(dict.fromkeys(found.setting))
    figure = Figure(figsize=(3.0 * len(settings), 2.1 * len(domains) + 0.6), layout="constrained")
    axes = figure.subplots(len(domains), len(settings), sharey=True, squeeze=False)
    for row, domain in zip(axes, domains, strict=True):
        for axis, setting in zip(row, settings, strict=True):
            arms = found[(found.domain == domain) & (found.setting == setting)]
            for grade in live_table.graded(arms):
                # A domain may have no question of a grade, or no arm of a setting that was asked.
                if len(arms) and arms[grade].notna().all():
                    _with_band(axis, arms, grade, GRADE_COLORS[grade])
            axis.set_title(f"{domain}: {LABELS[setting]}", fontsize=8)
            axis.set_ylim(-0.03, 1.03)
            axis.grid(alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("optimizer step")
    _named(axes[0, 0], {grade: GRADE_COLORS[grade] for grade in live_table.graded(found)})
    return _svg(figure)


def stage_seconds(seconds: dict[str, float]) -> str:
    """Where the time of the run went."""
    figure = Figure(figsize=(6.0, 0.32 * len(seconds) + 0.7))
    axis = figure.subplots()
    names = list(seconds)[::-1]
    axis.barh(names, [seconds[name] for name in names], color="#5b7f95")
    for place, name in enumerate(names):
        axis.text(seconds[name], place, f" {seconds[name]:.1f} s", va="center", fontsize=8)
    axis.set_xlabel("seconds")
    axis.margins(x=0.15)
    return _svg(figure)


def calibration(bins: list[dict[str, float]]) -> str:
    """Accuracy by confidence of the base model's probe; a circle's area is the share of the questions in its bin."""
    figure = Figure(figsize=(3.6, 3.4))
    axis = figure.subplots()
    total = sum(b["questions"] for b in bins)
    axis.plot([0, 1], [0, 1], color="#999", linestyle=":", linewidth=1)
    confidence, right = ([b[name] for b in bins] for name in ("confidence", "accuracy"))
    axis.plot(confidence, right, color="#2a7f9e", linewidth=1, alpha=0.6)
    axis.scatter(confidence, right, s=[12 + 500 * b["questions"] / total for b in bins], color="#2a7f9e", alpha=0.7, clip_on=False)
    axis.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="accuracy")
    return _svg(figure)


def letters(found: dict[str, dict[str, list[float | None]]]) -> str:
    """Recall by letter, and where orders or a prior were asked for, the letters' own pull."""
    names = {"recall": "recall", "probability": "mean probability over all rotations", "prior": "prior (PriDe)"}
    figure = Figure(figsize=(3.2 * len(found) + 1, 2.8))
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, (num_choices, row) in zip(axes, found.items(), strict=True):
        shown = [name for name in names if name in row]
        for place, name in enumerate(shown):
            values = [float("nan") if value is None else value for value in row[name]]
            offset = (place - (len(shown) - 1) / 2) * 0.8 / len(shown)
            color = ("#2a7f9e", "#c8553d", "#d9a21b")[list(names).index(name)]
            axis.bar(np.arange(len(values)) + offset, values, 0.8 / len(shown), color=color, label=names[name])
        axis.axhline(1 / int(num_choices), color="#999", linestyle=":", linewidth=1)
        axis.set_xticks(range(int(num_choices)), LETTERS[: int(num_choices)])
        axis.set_title(f"{num_choices} options")
    axes[0].legend(frameon=False, fontsize=7)
    return _svg(figure)
