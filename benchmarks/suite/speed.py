"""The documents' table of speed: one line per task and peer, with what shows that both computed the same.

Only figures that were measured next to the peer, in the same run, are compared. A task without rows, and GPUs until one has run,
keep their lines and name the command that measures them.
"""

from collections.abc import Sequence

from benchmarks.suite import gpu
from benchmarks.suite.goals import largest_gap
from benchmarks.suite.markdown import markdown_table, measured
from benchmarks.suite.rows import OURS, Row, between, number, only

HEADS = ("task", "ours", "peer", "speed-up, times", "same result?", "date and hardware")
PROBED_BY = "ours transformers"
_PEERS = {
    "authors' loop": "the authors' loop",
    "lm-eval hf": "lm-evaluation-harness, hf",
    "lm-eval vllm": "lm-evaluation-harness, vllm",
    "paper's recipe": "the paper's recipe (HF Trainer)",
}

_NOT_COMPARED = "not compared"

Cells = tuple[str, ...]


def speed_table(rows: Sequence[Row]) -> str:
    """Probing and training in float32, the same arms end to end, and GPUs; the median of the repeats, smallest to largest."""
    lines = [*_probing(rows), *_training(rows), *_end_to_end(rows), *_gpu(rows)]
    return markdown_table(HEADS, lines)


def _missing(task: str, command: str, reason: str = "not run yet") -> list[Cells]:
    return [(task, reason, "", "", "", f"`{command}`")]


def _line(task: str, ours: Row, peer: Row, same: str) -> Cells:
    name = _PEERS.get(peer.who, peer.who)
    return (
        task,
        _rate(ours),
        f"{name}: {_rate(peer)}",
        between(ours.ratios[peer.who]),
        same,
        measured(ours),
    )


def _rate(row: Row) -> str:
    return f"{number(row.value)} {row.quantity.replace(' per second', '')}/s"


def _pairs(rows: Sequence[Row], ours: Row, peers: Sequence[str] = ()) -> list[tuple[Row, Row]]:
    """`ours` with the row of each peer that it was measured against, or of those in `peers`."""
    named = [name for name in ours.ratios if not peers or name in peers]
    found = [
        only(rows, who=name, case=ours.case, quantity=ours.quantity, device=ours.device)
        for name in named
    ]
    return [(ours, theirs[0]) for theirs in found if theirs]


def _probing(rows: Sequence[Row]) -> list[Cells]:
    mine = only(
        rows, benchmark="probe", device="cpu", case="float32", quantity="questions per second"
    )
    pairs = [pair for ours in only(mine, who=PROBED_BY) for pair in _pairs(mine, ours)]
    lines = []
    for ours, peer in pairs:
        # Each gap counts from the authors' loop: together they bound the difference between the two.
        gaps = [row.gate.gap for row in (ours, peer) if row.gate.gap is not None]
        lines.append(
            _line(
                "probing, float32",
                ours,
                peer,
                _predictions(sum(gaps)) if len(gaps) == 2 else _NOT_COMPARED,
            )
        )
    return lines or _missing("probing", "python -m benchmarks run probe")


def _predictions(apart: float) -> str:
    return f"{1 - apart:.1%} of predictions or more" if apart else "yes: every prediction"


def _training(rows: Sequence[Row]) -> list[Cells]:
    mine = only(rows, benchmark="train", device="cpu", case="float32", quantity="tokens per second")
    peers = ("paper's recipe", "TRL", "TRL, plain loss")
    pairs = [pair for ours in only(mine, who=OURS) for pair in _pairs(mine, ours, peers)]
    lines = []
    for ours, peer in sorted(pairs, key=lambda pair: peers.index(pair[1].who)):
        gap = peer.gate.gap  # the peer's losses against ours
        lines.append(
            _line(
                "training, float32",
                ours,
                peer,
                _NOT_COMPARED if gap is None else f"yes: losses to {gap:.0e}",
            )
        )
    return lines or _missing("training", "python -m benchmarks run train")


def _end_to_end(rows: Sequence[Row]) -> list[Cells]:
    mine = only(rows, benchmark="end-to-end", device="cpu")
    speeds = only(mine, quantity="tokens per second")
    pairs = [pair for ours in only(speeds, who=OURS) for pair in _pairs(speeds, ours, ("TRL",))]
    accuracy, consistency = (
        largest_gap(only(mine, quantity=name)) for name in ("accuracy", "consistency")
    )
    if not pairs or accuracy is None or consistency is None:
        return _missing("the same arms, end to end", "python -m benchmarks run end-to-end")
    apart = f"no: accuracy to {number(accuracy)} points, consistency to {number(consistency)}"
    same = apart if accuracy or consistency else "yes: accuracy, consistency"
    ours, peers = ([pair[side] for pair in pairs] for side in (0, 1))
    faster = [row.ratios["TRL"].value for row in ours]
    task, ratio = (
        f"the same {len(pairs)} arms, end to end",
        f"{number(min(faster))} to {number(max(faster))}",
    )
    where = measured(*ours, *peers)
    cells = (task, f"{_range(ours)} tokens/s", f"TRL: {_range(peers)} tokens/s", ratio, same, where)
    return [cells]


def _range(rows: Sequence[Row]) -> str:
    values = [row.value for row in rows]
    return f"{number(min(values))} to {number(max(values))}"


def _gpu(rows: Sequence[Row]) -> list[Cells]:
    """Training against the peers that ran the same case on the same GPU, and probing against its peers."""
    found = [row for row in rows if row.device != "cpu"]
    lines: list[Cells] = []
    for row in only(found, benchmark="train", who=OURS, quantity="tokens per second"):
        others = only(
            found, benchmark="train", case=row.case, device=row.device, quantity=row.quantity
        )
        for peer in (other for other in others if other.who.startswith("TRL")):
            shown = f"{peer.who}: {_rate(peer)}"
            lines.append(
                (
                    f"training, {row.case}",
                    _rate(row),
                    shown,
                    number(row.value / peer.value),
                    _gate(row),
                    measured(row),
                )
            )
    for row in only(found, benchmark="probe", quantity="questions per second"):
        lines += [
            _line(f"probing, {row.case}", ours, peer, _gate(row))
            for ours, peer in _pairs(found, row)
        ]
    reason = "not compared with a peer yet" if found else "not run yet"
    return lines or _missing("all of it, on a GPU", gpu.FIRST, reason)


def _gate(row: Row) -> str:
    """The check that the figure was kept behind."""
    return row.gate.checked if row.gate.gap is None else f"{row.gate.checked}: {row.gate.gap:.1g}"
