"""The page of a screen: classes by kind, scores, the worst examples, what was filtered.

`Statistics` counts the examples one by one; memory does not grow with their number.
"""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from ift_scale.config import ScreenConfig
from ift_scale.config.screen import ScreenClass
from ift_scale.errors import shorten
from ift_scale.report.colors import NAMED
from ift_scale.report.document import document
from ift_scale.report.html import figure, joined, legend, paragraph, table
from ift_scale.report.svg import Axis, Chart, down
from ift_scale.screen.classes import CLASSES, Classified
from ift_scale.screen.kinds import KINDS, Recognised

COLORS: Mapping[ScreenClass, str] = {
    "known": NAMED["harmonious"],
    "uncertain": NAMED["natural"],
    "contradicts": NAMED["incompatible"],
    "not_about_knowledge": NAMED["self_aligning"],
}
NAMES: Mapping[str, str] = {
    "known": "known",
    "uncertain": "uncertain",
    "contradicts": "contradicts the model",
    "not_about_knowledge": "not about knowledge",
    "choice": "choice questions",
    "short": "short answers",
    "long": "longer answers",
    "other": "not about knowledge",
}
_BINS = 20
_WORST = 12
_SHOWN_CHARACTERS = 160
_ONE_LETTER = 0.6
"""Share of one letter among the predictions above which letters show a habit, not knowledge."""
_FEWEST_LETTERS = 20


@dataclass
class Statistics:
    """Counts over all examples; `add` each of them."""

    classes: Counter[tuple[str, str]] = field(default_factory=Counter)
    scores: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    letters: Counter[int] = field(default_factory=Counter)
    worst: dict[str, list[tuple[float, int, dict[str, str]]]] = field(default_factory=dict)
    too_long: int = 0

    def add(
        self, number: int, recognised: Recognised, verdict: Classified, measures: dict[str, Any]
    ) -> None:
        self.classes[recognised.kind, verdict.name] += 1
        self.too_long += bool(measures["too_long"])
        if recognised.kind == "choice" and measures["prediction"] is not None:
            self.letters[measures["prediction"]] += 1
        if verdict.score is None:
            return
        position = min(_BINS - 1, int((verdict.score + 1) / 2 * _BINS))
        self.scores[recognised.kind, verdict.name, position] += 1
        worst = self.worst.setdefault(recognised.kind, [])
        if len(worst) < _WORST or -verdict.score > worst[0][0]:
            shown = {
                "prompt": shorten(recognised.question, _SHOWN_CHARACTERS),
                "response": shorten(reference(recognised), _SHOWN_CHARACTERS),
                "why": verdict.reason,
            }
            heapq.heappush(worst, (-verdict.score, -number, shown))
            if len(worst) > _WORST:
                heapq.heappop(worst)

    def total(self, name: str) -> int:
        return sum(count for (_, cls), count in self.classes.items() if cls == name)

    @property
    def habit(self) -> float:
        """The share of the most frequent letter among the predictions, 0 for few questions."""
        num_asked = self.letters.total()
        return max(self.letters.values()) / num_asked if num_asked >= _FEWEST_LETTERS else 0.0


def reference(recognised: Recognised) -> str:
    """Returns the answer that the data gives."""
    if recognised.answer is None:
        return recognised.aliases[0]
    return recognised.choices[recognised.answer]


def warnings(statistics: Statistics, config: ScreenConfig, judged: Counter[str]) -> list[str]:
    """Returns what makes the result less reliable, one sentence each."""
    texts = []
    if statistics.habit > _ONE_LETTER:
        texts.append(
            f"The model answers {statistics.habit:.0%} of the choice questions with one letter, so"
            " its letters show a habit rather than knowledge. Compare the option texts: --set"
            " probe.reliability.decide_by=cloze."
        )
    if statistics.too_long:
        texts.append(
            f"{statistics.too_long} examples are longer than the model's context and were not asked"
            " (class uncertain)."
        )
    texts += [f"The judge gave {count} times {reason}." for reason, count in judged.items()]
    return texts


def render(
    title: str,
    statistics: Statistics,
    treated: Counter[str],
    found: Sequence[tuple[str, int]],
    notes: Sequence[str],
    config: ScreenConfig,
) -> str:
    """Returns the page. `treated`: what became of the examples; `found`: copies and leaks."""
    sections = [
        ("classes", "What the model knows of the data", _classes(statistics, notes)),
        ("scores", "Scores", _scores(statistics)),
        ("worst", "The examples that contradict the model most", _worst(statistics)),
        ("filtered", "The filtered set", _filtered(treated, found, config)),
    ]
    heading = "What of the data the model knows, and what contradicts it"
    return document(f"Screen of {title}", heading, title, sections)


def _present(statistics: Statistics) -> list[str]:
    return [kind for kind in KINDS if any(k == kind for k, _ in statistics.classes)]


def _classes(statistics: Statistics, notes: Sequence[str]) -> Markup:
    kinds = _present(statistics)
    chart = Chart(
        Axis(0, 1, "share of the examples", percent=True),
        down([NAMES[kind] for kind in kinds]),
        "Classes by kind of example",
        height=60 + 36 * len(kinds),
    )
    rows = []
    for y, kind in enumerate(kinds):
        counts = {name: statistics.classes[kind, name] for name in CLASSES}
        size, left = sum(counts.values()), 0.0
        for name, count in counts.items():
            chart.bar(left, left + count / size, y, 0.7, COLORS[name], f"{count / size:.0%}")
            left += count / size
        rows.append({"kind": NAMES[kind], "examples": size, **_named(counts)})
    rows.append(
        {
            "kind": "all",
            "examples": statistics.classes.total(),
            **_named({name: statistics.total(name) for name in CLASSES}),
        }
    )
    key = legend((COLORS[name], NAMES[name]) for name in CLASSES)
    return joined(
        [
            *(paragraph(note, "note") for note in notes),
            figure([("", chart.svg())], "Classes of the examples by kind.", key),
            table(rows, "Examples by kind and class"),
        ]
    )


def _named(counts: Mapping[ScreenClass, int]) -> dict[str, int]:
    return {NAMES[name]: count for name, count in counts.items()}


def _scores(statistics: Statistics) -> Markup:
    panels = []
    for kind in _present(statistics):
        bins = [
            [(name, statistics.scores[kind, name, n]) for name in CLASSES] for n in range(_BINS)
        ]
        most = max(sum(count for _, count in counts) for counts in bins)
        if not most:
            continue
        chart = Chart(
            Axis(-1, 1, "score"), Axis(0, most * 1.05, "examples"), f"Scores of {NAMES[kind]}"
        )
        for n, counts in enumerate(bins):
            below = 0.0
            for name, count in counts:
                _column(chart, n, below, below + count, COLORS[name])
                below += count
        panels.append((NAMES[kind], chart.svg()))
    caption = (
        "The score is the probability that the model gives to the answer in the data, less that of"
        " the strongest other answer. For longer answers, it is that of the most surprising fact"
        " word."
    )
    if not panels:
        return paragraph("No example was asked.")
    return figure(panels, caption, legend((COLORS[name], NAMES[name]) for name in CLASSES[:3]))


def _column(chart: Chart, number: int, low: float, high: float, color: str) -> None:
    """Draws one part of a histogram's column."""
    if high > low:
        left = -1 + 2 * number / _BINS
        chart.bar(left, left + 1.9 / _BINS, (low + high) / 2, high - low, color)


def _worst(statistics: Statistics) -> Markup:
    parts = []
    for kind in _present(statistics):
        worst = sorted(statistics.worst.get(kind, []), reverse=True)
        rows = [
            {"score": f"{-badness:.2f}".replace("-", "−"), **shown} for badness, _, shown in worst
        ]
        if rows:
            parts.append(table(rows, f"Lowest scores of {NAMES[kind]}"))
    return joined(parts) if parts else paragraph("No example was asked.")


def _filtered(
    treated: Counter[str], found: Sequence[tuple[str, int]], config: ScreenConfig
) -> Markup:
    rows = [{"": name, "examples": count} for name, count in [*found, *sorted(treated.items())]]
    classes = " and ".join(NAMES[name] for name in config.treated)
    about = f"Treatment {config.treatment}" + (
        "." if config.treatment == "weight" else f" of the class {classes}."
    )
    return joined([paragraph(about), table(rows, "Examples of filtered.jsonl")])
