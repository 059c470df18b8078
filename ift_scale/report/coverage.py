"""Over which domains a number is, in words: where a setting lacks a domain, its mean is over fewer than the run has.

Rows carry `domains` and `of_domains`; a measure that is defined in fewer of them `NAME_domains`. The rows of the domain `shared`
are over the domains that every setting has, so they can be compared with each other.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ift_scale.report.facts import ALL, SHARED, overall
from ift_scale.treatments import treatment

Row = Mapping[str, Any]


def _counts(row: Row, name: str) -> tuple[int, int] | None:
    """(domains of the number, domains of the run) where it is over fewer; None for a single domain's row."""
    num, of = row.get(f"{name}_domains", row.get("domains")), row.get("of_domains")
    if (
        row.get("domain", ALL) not in (ALL, SHARED)
        or num is None
        or of is None
        or pd.isna(num)
        or pd.isna(of)
    ):
        return None
    return (int(num), int(of)) if 0 < num < of else None


def over(row: Row, name: str = "") -> str:
    """`over 3 of 4 domains` where the row's number `name` is over fewer domains than the run has, else nothing."""
    found = _counts(row, name)
    return f"over {found[0]} of {found[1]} domains" if found else ""


def label(row: Row, name: str = "") -> str:
    """A setting's short name for an axis, `S (3/4)` where it is over 3 of 4 domains."""
    found, short = _counts(row, name), treatment(row["setting"]).short
    return f"{short} ({found[0]}/{found[1]})" if found else short


def explained(rows: pd.DataFrame, *names: str) -> str:
    """The sentence about `label` that a figure's caption needs, or nothing."""
    some = any(over(row, name) for row in rows.to_dict("records") for name in names or ("",))
    return (
        " (n/m), and hollow: over n of the run's m domains, so not to be compared with those over others."
        if some
        else ""
    )


def column(cells: Iterable[dict[str, Any]], rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The cells of a table with a column of the number of domains, where some row is over fewer."""
    made, found = list(cells), rows.to_dict("records")
    if not any(over(row) for row in found):
        return made
    counts = [f"{row['domains']:.0f} of {row['of_domains']:.0f}" for row in found]
    return [cell | {"domains": count} for cell, count in zip(made, counts, strict=True)]


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Of each group the rows over the domains that every setting has: those of `shared` where there are any, else those of all."""
    shared = table[table.domain == SHARED]
    whole = overall(table)
    return pd.concat([whole[~whole.group.isin(shared.group)], shared]) if len(shared) else whole


def names(rows: pd.DataFrame) -> Sequence[str]:
    """The domains that rows of the same ones are over."""
    return str(rows.over.iloc[0]).split("; ")
