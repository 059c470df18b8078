"""Charts as SVG text, written here rather than by a plotting library.

A panel is a few kilobytes, its text stays text, its lines and letters take the page's colours in light and dark, and it is narrow
enough to be read on a phone: what has several parts is several panels, which the page sets side by side where there is room.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from ift_scale.report.colors import readable_on

WIDTH = 330
LETTER = 6.5
"""Width of a letter of 11 pixels in a wide typeface."""


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    label: str = ""
    marks: Sequence[tuple[float, str]] | None = None
    """Places with their texts; round numbers where left out."""
    percent: bool = False

    @property
    def ticks(self) -> Sequence[tuple[float, str]]:
        if self.marks is not None:
            return self.marks
        return [
            (value, f"{value * 100:.4g}%" if self.percent else _told(value))
            for value in round_numbers(self.low, self.high)
        ]


def _told(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def round_numbers(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the limits."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def limits(
    values: Iterable[float],
    least: float | None = None,
    most: float | None = None,
    pad: float = 0.06,
) -> tuple[float, float]:
    """The range of the finite values with some room, `least` and `most` its ends where it would go beyond."""
    found = np.array([value for value in values if np.isfinite(value)], dtype=float)
    if not len(found):
        return 0.0, 1.0
    low, high = float(found.min()), float(found.max())
    room = (high - low) * pad or abs(high) * 0.1 or 0.5
    low, high = low - room, high + room
    return (low if least is None else max(low, least)), (high if most is None else min(high, most))


def across(names: Sequence[str]) -> Axis:
    """An x axis of names, at 0, 1, ... from left to right."""
    return Axis(-0.5, len(names) - 0.5, marks=list(enumerate(names)))


def down(names: Sequence[str]) -> Axis:
    """A y axis of names, at 0, 1, ... from the top."""
    return Axis(len(names) - 0.5, -0.5, marks=list(enumerate(names)))


class Chart:
    """One panel. Marks are drawn in the order of the calls; values that are no numbers leave a gap."""

    def __init__(self, x: Axis, y: Axis, about: str, height: float = 220):
        self.x, self.y, self.about = x, y, about
        longest = max((len(text) for _, text in y.ticks), default=0)
        self.left = longest * LETTER + 12 + (16 if y.label else 0)
        self.slanted = sum(len(text) + 2 for _, text in x.ticks) * LETTER > WIDTH - self.left
        below = (
            max((len(text) for _, text in x.ticks), default=0) * LETTER * 0.72 + 14
            if self.slanted
            else 16
        )
        self.right, self.top, self.bottom = (
            WIDTH - 19.0,
            10.0,
            height - below - (18 if x.label else 2),
        )
        self.height = height
        self.marks: list[str] = []

    def at_x(self, value: float) -> float:
        return self.left + (value - self.x.low) / (self.x.high - self.x.low) * (
            self.right - self.left
        )

    def at_y(self, value: float) -> float:
        return self.bottom - (value - self.y.low) / (self.y.high - self.y.low) * (
            self.bottom - self.top
        )

    def line(
        self, xs: Iterable[float], ys: Iterable[float], color: str, kind: str = "line"
    ) -> None:
        path, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if np.isfinite(x) and np.isfinite(y):
                path.append(f"{pen}{self.at_x(x):.1f} {self.at_y(y):.1f}")
                pen = "L"
            else:
                pen = "M"
        if path:
            self.marks.append(f'<path class="{kind}" stroke="{color}" d="{"".join(path)}"/>')

    def band(
        self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], color: str
    ) -> None:
        there = [i for i in range(len(xs)) if np.isfinite(low[i]) and np.isfinite(high[i])]
        points = [(xs[i], low[i]) for i in there] + [(xs[i], high[i]) for i in reversed(there)]
        if points:
            text = " ".join(f"{self.at_x(x):.1f},{self.at_y(y):.1f}" for x, y in points)
            self.marks.append(f'<polygon class="band" fill="{color}" points="{text}"/>')

    def point(
        self,
        x: float,
        y: float,
        color: str,
        shape: str = "circle",
        size: float = 4,
        hollow: bool = False,
    ) -> None:
        if not (np.isfinite(x) and np.isfinite(y)):
            return
        u, v = self.at_x(x), self.at_y(y)
        paint = f'class="hollow" stroke="{color}"' if hollow else f'fill="{color}"'
        if shape == "circle":
            self.marks.append(f'<circle {paint} cx="{u:.1f}" cy="{v:.1f}" r="{size:g}"/>')
            return
        corners = {
            "square": (45, 4),
            "diamond": (0, 4),
            "triangle": (-90, 3),
            "down": (90, 3),
            "pentagon": (-90, 5),
        }
        turn, count = corners[shape]
        angles = [math.radians(turn + 360 / count * i) for i in range(count)]
        spread = size * 1.25
        text = " ".join(
            f"{u + spread * math.cos(a):.1f},{v + spread * math.sin(a):.1f}" for a in angles
        )
        self.marks.append(f'<polygon {paint} points="{text}"/>')

    def interval(self, x: float, low: float, high: float, color: str) -> None:
        """Upright, at `x`."""
        self.line([x, x], [low, high], color, "interval")

    def span(self, y: float, low: float, high: float, color: str) -> None:
        """Lying, at `y`."""
        self.line([low, high], [y, y], color, "interval")

    def bar(
        self, left: float, right: float, y: float, thickness: float, color: str, text: str = ""
    ) -> None:
        """Lying, from `left` to `right`; `text` stands inside where it fits."""
        if not (np.isfinite(left) and np.isfinite(right)) or right <= left:
            return
        u, width = self.at_x(left), self.at_x(right) - self.at_x(left)
        tall = abs(self.at_y(thickness) - self.at_y(0))
        top = self.at_y(y) - tall / 2
        self.marks.append(
            f'<rect fill="{color}" x="{u:.1f}" y="{top:.1f}" width="{width:.1f}" height="{tall:.1f}"/>'
        )
        if text and width > len(text) * LETTER + 4:
            place = f'style="fill:{readable_on(color)}" x="{u + width / 2:.1f}" y="{top + tall / 2 + 4:.1f}"'
            self.marks.append(f'<text class="inside" {place}>{escape(text)}</text>')

    def level(self, y: float, kind: str = "dashed") -> None:
        if np.isfinite(y):
            self.line([self.x.low, self.x.high], [y, y], "currentColor", kind)

    def upright(self, x: float, kind: str = "dashed") -> None:
        self.line([x, x], [self.y.low, self.y.high], "currentColor", kind)

    def text(self, x: float, y: float, text: str, anchor: str = "start", over: float = 0) -> None:
        if np.isfinite(x) and np.isfinite(y):
            u = min(max(self.at_x(x), self.left + 2), self.right - 2)
            place = f'class="over" x="{u:.1f}" y="{self.at_y(y) - over:.1f}"'
            self.marks.append(f'<text {place} text-anchor="{anchor}">{escape(text)}</text>')

    def svg(self) -> Markup:
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {self.height:g}" role="img" aria-label="{escape(self.about)}">'
            f"<title>{escape(self.about)}</title>",
            *self._frame(),
            *self.marks,
            "</svg>",
        ]
        return Markup("".join(parts))

    def _frame(self) -> list[str]:
        out = []
        named_y, named_x = self.y.marks is not None, self.x.marks is not None
        for value, text in self.y.ticks:
            v = self.at_y(value)
            if not named_y:
                out.append(f'<path class="grid" d="M{self.left:.1f} {v:.1f}H{self.right:.1f}"/>')
            out.append(
                f'<text x="{self.left - 6:.1f}" y="{v + 4:.1f}" text-anchor="end">{escape(text)}</text>'
            )
        for value, text in self.x.ticks:
            u = self.at_x(value)
            if not named_x:
                out.append(f'<path class="grid" d="M{u:.1f} {self.top:.1f}V{self.bottom:.1f}"/>')
            place = f'x="{u:.1f}" y="{self.bottom + 15:.1f}" text-anchor="middle"'
            if self.slanted:
                v = self.bottom + 12
                place = f'x="{u + 3:.1f}" y="{v:.1f}" text-anchor="end" transform="rotate(-45 {u + 3:.1f} {v:.1f})"'
            out.append(f"<text {place}>{escape(text)}</text>")
        out.append(
            f'<path class="axis" d="M{self.left:.1f} {self.top:.1f}V{self.bottom:.1f}H{self.right:.1f}"/>'
        )
        middle = (self.top + self.bottom) / 2
        if self.x.label:
            x = (self.left + self.right) / 2
            out.append(
                f'<text class="label" x="{x:.1f}" y="{self.height - 5:.1f}" text-anchor="middle">{escape(self.x.label)}</text>'
            )
        if self.y.label:
            turn = f'transform="rotate(-90 11 {middle:.1f})"'
            out.append(
                f'<text class="label" x="11" y="{middle:.1f}" text-anchor="middle" {turn}>{escape(self.y.label)}</text>'
            )
        return out


SHAPES = ("circle", "square", "triangle", "diamond", "down", "pentagon")
