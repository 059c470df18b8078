"""The plan's tables as text, at most 132 columns wide."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ift_scale.estimate.scaling import Row
from ift_scale.plan.costs import ArmCost, Devices, StageCost
from ift_scale.plan.rates import ITEMS

WIDTH = 132  # a log has no width, and a table must not be folded into rich's 80 columns
GIB = 2**30


def show(table: Table) -> None:
    Console(width=WIDTH, highlight=False).print(table)


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def hours(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def stages(rows: Sequence[StageCost], devices: Devices) -> Table:
    """By variant and stage, and the total of what is known."""
    table = _table(("variant", "stage"), ("arms", "shared", "work"))
    for name in ("", "rate of a device"):
        table.add_column(name)
    table.add_column("wall", justify="right")
    table.add_column(devices.unit, justify="right")
    for row in rows:
        bound = "" if row.exact or not row.items else "at most "
        work = f"{bound}{row.items:,.0f}" if row.items else "none"
        shared = (
            f"{row.shared or ''}"
            if row.arms or row.stage in ("train", "evaluate")
            else "all"
            if row.shared
            else ""
        )
        arms = str(row.arms) if row.stage in ("train", "evaluate") else ""
        rate = (
            ""
            if not row.items
            else "not known"
            if row.rate is None
            else f"{row.rate.per_second:.4g}/s {row.rate.source}"
        )
        table.add_row(
            row.variant,
            row.stage,
            arms,
            shared,
            work,
            ITEMS[row.stage],
            rate,
            duration(row.seconds),
            hours(row.hours),
        )
    known = [row for row in rows if row.seconds is not None and row.hours is not None]
    wall, total = sum(row.seconds or 0 for row in known), sum(row.hours or 0 for row in known)
    missing = "" if len(known) == len(rows) else "without what is not known"
    table.add_row("total", "", "", "", "", "", missing, duration(wall), hours(total))
    return table


def arms(rows: Sequence[ArmCost], devices: Devices) -> Table:
    """By variant and setting: training and evaluation."""
    columns = (
        "arms",
        "shared",
        "examples seen",
        f"{devices.unit} an arm",
        f"{devices.unit} in all",
    )
    table = _table(("variant", "setting"), columns)
    for row in rows:
        each = None if row.hours is None or not row.arms else row.hours / row.arms
        shown = (
            ("", "", "")
            if not row.arms
            else (f"{row.examples:,.0f}", hours(each), hours(row.hours))
        )
        table.add_row(row.variant, row.setting, str(row.arms), str(row.shared or ""), *shown)
    return table


_PARTS = {
    "matrices": ("forward matrices", "backward matrices"),
    "attention": ("forward attention", "backward attention"),
    "head": ("forward head",),
    "other": ("forward passes", "backward passes", "backward gradients"),
    "again": ("recomputation",),
    "update": ("update", "offload"),
    "host": ("forward host", "backward host", "host"),
    "sending": ("communication",),
}


def scaling(rows: Sequence[Row]) -> Table:
    """A row a cluster size; the parts are shares of the step."""
    table = _table(
        ("GPUs", "ZeRO", "recompute", "offload"),
        ("GiB", "micro", "idle", "step s", "tok/s/GPU", "MFU"),
    )
    table.padding = (0, 1, 0, 0)
    for name in _PARTS:
        table.add_column(name, justify="right")
    for row in rows:
        found, setting = row.prediction, row.setting
        shares = [
            sum(found.parts.get(part, 0.0) for part in parts) / found.seconds
            for parts in _PARTS.values()
        ]
        memory = f"{row.memory.total / GIB:.0f}" + ("" if row.fits is not False else "!")
        idle = str(row.devices - row.busy or "")
        numbers = (
            f"{found.seconds:.3g}",
            f"{found.tokens_per_second_per_device:,.0f}",
            f"{found.mfu:.1%}",
        )
        told = (str(row.devices), setting.stage, setting.checkpointing, setting.offload)
        table.add_row(
            *told,
            memory,
            str(row.micro_batches),
            idle,
            *numbers,
            *(f"{share:.0%}" for share in shares),
        )
    return table
