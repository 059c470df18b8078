"""Shows the ranks' events as progress lines."""

import time
from collections.abc import Mapping
from typing import Any

from ift_scale.io.progress import Bar, say


def progress_line(arm: str, event: Mapping[str, Any]) -> str:
    """Returns the line of a step event: a row of metrics.jsonl with `of` and `seconds_left`."""
    parts = [
        f"{arm} step {event['step']}/{event['of']}",
        f"loss {_number(event['loss'], '.3f')}",
        f"norm {_number(event['grad_norm'], '.2f')}",
        f"lr {event['learning_rate']:.1e}",
        f"{event['tokens_per_second_per_gpu']:,.0f} tok/s/GPU",
        f"sup {event['supervised_share']:.0%}",
        *([] if event["mfu"] is None else [f"MFU {event['mfu']:.0%}"]),
        f"mem {event['peak_memory_gib']:.1f} GiB",
        f"{time_left(event['seconds_left'])} left",
    ]
    return " ".join(parts)


def _number(value: float | None, form: str) -> str:
    return "nan" if value is None else format(value, form)


def time_left(seconds: float) -> str:
    """Returns a duration in its one or two largest units."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


class ProgressReporter:
    """Shows the ranks' events on `bar`.

    `seconds`: time from the launch to the first step, by phase. The newest measurement of each
    kind follows the arm's step in its line.
    """

    def __init__(self, bar: Bar, seconds: dict[str, float]):
        self.bar, self.seconds = bar, seconds
        self._launched = time.monotonic()
        self._arm = ""
        self._measured: dict[str, str] = {}

    def show(self, event: dict[str, Any]) -> None:
        if event["event"] == "joined":
            since = time.monotonic() - self._launched
            self.seconds |= {
                "launch_and_imports": since,
                "imports": event["imports"],
                "join": event["join"],
            }
        elif event["event"] == "step":
            self.seconds.setdefault("to_first_log", time.monotonic() - self._launched)
        self._show(event)

    def _show(self, event: Mapping[str, Any]) -> None:
        bar = self.bar
        match event["event"]:
            case "joined":
                bar.note(f"{event['world_size']} ranks joined")
            case "arm":
                self._arm, self._measured = str(event["name"]), {}
                bar.note(self._arm)
            case "step":
                bar.note(progress_line(self._arm, event) + self._newest())
            case "note":
                say(f"train: {event['message']}")
            case "live":
                text = f", HOMO {event['accuracy']:.1%} KL {event['divergence']:.2f}"
                self._show_measured("live", text, event)
            case "validation":
                best = " (best)" if event["best"] else ""
                text = f", validation loss {_number(event['loss'], '.3f')}{best}"
                self._show_measured("validation", text, event)
            case "done":
                bar.advance()

    def _newest(self) -> str:
        return "".join(self._measured.values())

    def _show_measured(self, kind: str, text: str, event: Mapping[str, Any]) -> None:
        self._measured[kind] = text
        end = ", stopped early" if event["over"] else ""
        self.bar.note(f"{self._arm} step {event['step']}/{event['of']}{self._newest()}{end}")
