"""The plan's tables, at most 132 columns wide."""

from collections.abc import Sequence

from rich.table import Table

from ift_scale.plan.costs import ArmCost, Devices, StageCost
from ift_scale.plan.rates import ITEMS
from ift_scale.plan.text import duration, hours, new_table


def stages(rows: Sequence[StageCost], devices: Devices) -> Table:
    """Returns one row per variant and stage, and the total of what is known."""
    table = new_table(("variant", "stage"), ("arms", "shared", "work"))
    for name in ("", "rate per device"):
        table.add_column(name)
    table.add_column("wall", justify="right")
    table.add_column(devices.unit, justify="right")
    for row in rows:
        bound = "" if row.exact or not row.items else "at most "
        work = f"{bound}{row.items:,.0f}" if row.items else "none"
        shared = (
            f"{row.shared or ''}"
            if row.arms or row.stage not in ("probe", "write")
            else "all"
            if row.shared
            else ""
        )
        arms = "" if row.stage in ("probe", "write") else str(row.arms)
        rate = (
            ""
            if not row.items
            else "unknown"
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
    missing = "" if len(known) == len(rows) else "without unknown rates"
    table.add_row("total", "", "", "", "", "", missing, duration(wall), hours(total))
    return table


def arms(rows: Sequence[ArmCost], devices: Devices) -> Table:
    """Returns one row per variant and setting, for training and what the arms are asked."""
    columns = (
        "arms",
        "shared",
        "examples seen",
        f"{devices.unit} per arm",
        f"{devices.unit} in total",
    )
    table = new_table(("variant", "setting"), columns)
    for row in rows:
        each = None if row.hours is None or not row.arms else row.hours / row.arms
        shown = (
            ("", "", "")
            if not row.arms
            else (f"{row.examples:,.0f}", hours(each), hours(row.hours))
        )
        table.add_row(row.variant, row.setting, str(row.arms), str(row.shared or ""), *shown)
    return table
