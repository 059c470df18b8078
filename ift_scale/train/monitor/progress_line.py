"""The line that tells a person how an arm is doing, made of a step's event."""

from collections.abc import Mapping
from typing import Any


def progress_line(arm: str, event: Mapping[str, Any]) -> str:
    """`event`: a row of metrics.jsonl with `of` and `seconds_left`. What is not known is left out."""
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
    """In the one or two units that matter."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
