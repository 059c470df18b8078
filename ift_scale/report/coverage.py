"""Which domains a number is over, in words: a setting that lacks a domain has a mean over fewer.

Rows have columns `domains` and `of_domains`; a measure that is defined in fewer of them has
`NAME_domains`. Rows of the domain `shared` are over the domains that every setting has, so they can
be compared with each other.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ift_scale.treatments import POOLED, treatment

Row = Mapping[str, Any]
ALL, SHARED = "all", "shared"
GROUPS = ("HOMO", "ID", "OOD")


def is_free(group: str) -> bool:
    """True for a group of free questions, which have no chance level."""
    return group.endswith(" free")


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows over all domains; without such rows, those of the only domain, or none."""
    if (table.domain == ALL).any():
        return table[table.domain == ALL]
    own = without_pooled(table)
    return own if own.domain.nunique() == 1 else own.iloc[:0]


def without_pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of single domains; if there are none, those of the pooled arms."""
    return table[table.domain != POOLED] if (table.domain != POOLED).any() else table


def _counts(row: Row, name: str) -> tuple[int, int] | None:
    """Returns (domains of the number, domains of the run) if they differ, else None."""
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
    """Returns `over 3 of 4 domains` if a row's number is over fewer domains than the run has."""
    found = _counts(row, name)
    return f"over {found[0]} of {found[1]} domains" if found else ""


def label(row: Row, name: str = "") -> str:
    """Returns a setting's short name for an axis: `S (3/4)` if it is over 3 of 4 domains."""
    found, short = _counts(row, name), treatment(row["setting"]).short
    return f"{short} ({found[0]}/{found[1]})" if found else short


def coverage_note(rows: pd.DataFrame, *names: str) -> str:
    """Returns a caption's sentence about `label`; empty if no row lacks a domain."""
    if not any(over(row, name) for row in rows.to_dict("records") for name in names or ("",)):
        return ""
    return (
        " (n/m), and hollow: over n of the run's m domains, so not comparable with means over "
        "other domains."
    )


def column(cells: Iterable[dict[str, Any]], rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Adds a column with the number of domains if some row is over fewer than the run has."""
    out, records = list(cells), rows.to_dict("records")
    if not any(over(row) for row in records):
        return out
    counts = [f"{row['domains']:.0f} of {row['of_domains']:.0f}" for row in records]
    return [cell | {"domains": count} for cell, count in zip(out, counts, strict=True)]


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Returns comparable rows of each group: those of `shared` if any, else of all domains."""
    shared = table[table.domain == SHARED]
    whole = overall(table)
    return pd.concat([whole[~whole.group.isin(shared.group)], shared]) if len(shared) else whole


def names(rows: pd.DataFrame) -> Sequence[str]:
    """Returns the domains of rows that are all over the same ones."""
    return str(rows.over.iloc[0]).split("; ")
