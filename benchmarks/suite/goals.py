"""The project's goals that stored rows can answer, judged from the rows."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.suite.rows import MEASURED, OURS, PREDICTED, Row, number, only

Rows = Sequence[Row]
_PROBE, _TRAIN = "`probe`", "`train`"


@dataclass(frozen=True)
class Goal:
    """`came`: the result, from the rows of a CPU, or None if they do not contain it. `where`: the benchmark of the rows."""

    goal: str
    came: Callable[[Rows], str | None]
    where: str


def told(rows: Rows) -> list[tuple[str, str, str]]:
    """(goal, result, benchmark) of each goal."""
    return [
        (
            goal.goal,
            goal.came(rows) or "Nothing is stored yet: `python -m benchmarks run all`",
            goal.where,
        )
        for goal in GOALS
    ]


def judged(values: Mapping[str, float], least: float, more: str = "") -> str | None:
    """`14 (float32), 9.7 (bfloat16)`, with a word where some or all are less than `least`."""
    if not values:
        return None
    met = sum(value >= least for value in values.values())
    verdict = "" if met == len(values) else "**met in part**: " if met else "**not met**: "
    return verdict + ", ".join(f"{number(value)} ({name})" for name, value in values.items()) + more


def _ratios(
    benchmark: str, peer: str, who: str = OURS, **wanted: str
) -> Callable[[Rows], dict[str, float]]:
    """By case, how many times better than the peer."""

    def found(rows: Rows) -> dict[str, float]:
        mine = only(rows, benchmark=benchmark, who=who, device="cpu", **wanted)
        return {row.case: row.ratios[peer].value for row in mine if peer in row.ratios}

    return found


def _probe(peer: str, least: float) -> Callable[[Rows], str | None]:
    ratios = _ratios("probe", peer, "ours transformers")
    return lambda rows: judged(ratios(rows), least)


def _predictions(rows: Rows) -> str | None:
    mine = [
        row
        for row in only(rows, benchmark="probe", case="float32", device="cpu")
        if row.who.startswith(OURS)
    ]
    return judged(
        {row.who: 100 * (1 - row.gate.gap) for row in mine if row.gate.gap is not None},
        99.5,
        " percent",
    )


def _pipeline(rows: Rows) -> str | None:
    names = {"sustained": "sustained", "one core": "with its start-up"}
    found = {
        row.case: row.value
        for row in only(rows, benchmark="pipeline", device="cpu")
        if row.case in names and not row.at
    }
    return judged({names[case]: found[case] for case in names if case in found}, 5000)


def _recipe(rows: Rows) -> str | None:
    return judged(_ratios("train", "paper's recipe", quantity="tokens per second")(rows), 5)


def _trl(rows: Rows) -> str | None:
    plain = _ratios("train", "TRL, plain loss", quantity="tokens per second")(rows)
    more = "".join(
        f"; {number(value)} against TRL with transformers' loss" for value in plain.values()
    )
    return judged(_ratios("train", "TRL", quantity="tokens per second")(rows), 5, more)


def _same_arms(rows: Rows) -> str | None:
    mine = only(rows, benchmark="end-to-end", device="cpu")
    speeds = _ratios("end-to-end", "TRL", quantity="tokens per second")(rows)
    gaps = {name: largest_gap(only(mine, quantity=name)) for name in ("accuracy", "consistency")}
    if not speeds or None in gaps.values():
        return None
    verdict = "" if not any(gaps.values()) else "**not met**: "
    apart = ", ".join(f"{name} {number(gap or 0)}" for name, gap in gaps.items())
    faster = f"{number(min(speeds.values()))} to {number(max(speeds.values()))}"
    return f"{verdict}largest differences: {apart}; ours {faster} times TRL's tokens per second"


def largest_gap(rows: Rows) -> float | None:
    """Largest difference between ours and TRL's figures of one quantity; None without a pair."""
    values = {(row.case, row.who): row.value for row in rows}
    pairs = [
        (value, values[case, "TRL"])
        for (case, who), value in values.items()
        if who == OURS and (case, "TRL") in values
    ]
    return max((abs(a - b) for a, b in pairs), default=None)


def _errors(rows: Rows, benchmark: str, quantity: str) -> list[float]:
    """Of the predictions, as shares of what was measured."""
    mine = [
        row
        for row in only(rows, benchmark=benchmark, device="cpu")
        if row.quantity.startswith(quantity)
    ]
    measured = {row.case: row.value for row in only(mine, who=MEASURED)}
    return [
        row.value / measured[row.case] - 1
        for row in only(mine, who=PREDICTED)
        if row.case in measured
    ]


def _memory(rows: Rows) -> str | None:
    errors = _errors(rows, "memory", "most bytes held in a step")
    if not errors:
        return None
    verdict = "" if max(map(abs, errors)) <= 0.1 else "**not met**: "
    return f"{verdict}{min(errors):+.0%} to {max(errors):+.0%} of the peak of a step, small models on a CPU"


def _simulator(rows: Rows) -> str | None:
    errors = [abs(error) for error in _errors(rows, "simulator", "seconds per step")]
    if not errors:
        return None
    return f"median {statistics.median(errors):.0%}, largest {max(errors):.0%}, over {len(errors)} points on this CPU"


GOALS = (
    Goal("probe: 10 times the authors' loop", _probe("authors' loop", 10), _PROBE),
    Goal("probe: 10 times lm-evaluation-harness, hf", _probe("lm-eval hf", 10), _PROBE),
    Goal("probe: 60 times lm-evaluation-harness, vllm", _probe("lm-eval vllm", 60), _PROBE),
    Goal("99.5% of predictions equal to the authors' loop in float32", _predictions, _PROBE),
    Goal("probe without an engine: 5,000 questions per second and core", _pipeline, "`pipeline`"),
    Goal("training: more than 5 times the paper's recipe", _recipe, _TRAIN),
    Goal("training: 5 times TRL at its best setting", _trl, _TRAIN),
    Goal("the same arms by ours and by TRL are equal", _same_arms, "`end-to-end`"),
    Goal("memory model within 10%", _memory, "`memory`"),
    Goal("simulator: the error on every measured point is reported", _simulator, "`simulator`"),
)
