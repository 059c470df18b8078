"""The stored figures: a new measurement replaces one of the same op, device, dtype and shape."""

from typing import Any

from ift_scale_kernels import figures


def row(op: str, rows: int, time: float) -> dict[str, Any]:
    return {
        "op": op,
        "device": "a GPU",
        "dtype": "bfloat16",
        "shape": {"rows": rows},
        "milliseconds": {"triton": {"p50": time}},
    }


def test_new_rows_replace_their_like() -> None:
    old = [row("rms_norm", 1, 5.0), row("rms_norm", 2, 6.0)]
    assert figures.merged(old, [row("rms_norm", 2, 1.0), row("swiglu", 2, 2.0)]) == [
        row("rms_norm", 1, 5.0),
        row("rms_norm", 2, 1.0),
        row("swiglu", 2, 2.0),
    ]


def test_the_stored_rows_are_complete() -> None:
    for stored in figures.read():
        assert set(stored) == {"op", "device", "dtype", "shape", "milliseconds", "date", "versions"}
        assert all(set(times) == {"p20", "p50", "p80"} for times in stored["milliseconds"].values())
