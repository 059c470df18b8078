"""The results of a study's variants, or of one run, as data and as tables for docs/studies.

    ift-scale run configs/world_study.yaml
    python -m benchmarks.study configs/world_study.yaml

Reads the finished variants' analyse tables, stores means over the domains in
benchmarks/results/NAME.json (NAME is the last part of the study's output_dir), and prints them with
one column per variant.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import pandas as pd

from benchmarks.suite.rows import store_inputs
from ift_scale.config import Config
from ift_scale.config.file import load_study
from ift_scale.io.manifests import read_manifest
from ift_scale.report.coverage import over, overall
from ift_scale.report.facts import read
from ift_scale.report.sections.differences import pair
from ift_scale.report.sections.mechanisms import COLUMNS as MECHANISMS
from ift_scale.report.sections.mechanisms import summary
from ift_scale.report.text import interval, number, points, setting_name
from ift_scale.treatments import in_order

Rows = list[dict[str, Any]]
COLUMNS = {
    "settings": "setting group domains of_domains accuracy accuracy_low accuracy_high consistency "
    "kl seeds questions",
    "comparisons": "first second group seeds domains of_domains difference difference_low "
    "difference_high p holm_p mcnemar_p detectable",
    "best_ratio": "domain group seeds domains of_domains best_ratio accuracy best_other difference "
    "low high reason",
    "correlation": "measure group n seeds domains of_domains rho p rho_within low high p_within "
    "reason",
    "abstention": "setting group domains of_domains refused refused_known refused_known_domains "
    "refused_unknown refused_unknown_domains accuracy_answered accuracy_answered_low "
    "accuracy_answered_high accuracy_answered_domains f1 f1_domains average_precision "
    "average_precision_domains reason",
    "generated": "setting group domains of_domains letter_accuracy generated_accuracy agreement "
    "unparsed",
    "base": "domain group questions accuracy accuracy_low accuracy_high",
}
"""Columns kept of each table's rows over all domains (best_ratio, correlation, base: all rows)."""
WHOLE = ("format_content", "learnt", "hidden", "forgetting_fit")
"""Tables of which all columns are kept."""


def found(config: Config) -> dict[str, Rows]:
    """Returns the rows of a variant's tables, its set sizes and their balance."""
    folder = Path(config.output_dir)
    out: dict[str, Rows] = {}
    for name, columns in COLUMNS.items():
        table = read(folder / "analyse" / f"{name}.csv", name)
        whole = table if name in ("best_ratio", "correlation", "base") else overall(table)
        out[name] = _plain(whole[[c for c in columns.split() if c in whole]])
    for name in WHOLE:
        if len(table := read(folder / "analyse" / f"{name}.csv", name)):
            out[name] = _plain(overall(table) if "domain" in table else table)
    manifest = read_manifest(folder / "construct")
    assert manifest is not None, f"{folder}: not constructed"
    out["sets"] = [
        {"domain": k.removesuffix("/set_size"), "size": v}
        for k, v in manifest.counts.items()
        if k.endswith("/set_size")
    ]
    needed = dict.fromkeys(column.table for column in MECHANISMS)
    tables = {name: read(folder / "analyse" / f"{name}.csv", name) for name in needed}
    out["mechanisms"] = _plain(summary(tables))
    out["balance"] = _plain(balance(read(folder / "construct" / "balance.csv", "balance")))
    return out


def _plain(table: pd.DataFrame) -> Rows:
    """Drops missing values."""
    return [
        {name: value for name, value in row.items() if not pd.isna(value)}
        for row in table.to_dict("records")
    ]


def balance(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the mean absolute distance from I by stage, covariate and setting."""
    once = table.drop_duplicates(["domain", "seed", "stage", "setting", "covariate"])
    sized = once.assign(distance=pd.to_numeric(once.distance).abs())
    means = (
        sized.groupby(["covariate", "setting", "stage"], sort=False)
        .distance.mean()
        .unstack("stage")
        .reset_index()
    )
    counts = table.groupby("setting").domain.nunique()
    counted = means.assign(domains=means.setting.map(counts), of_domains=table.domain.nunique())
    return counted[["covariate", "setting", "before", "after", "domains", "of_domains"]]


def side_by_side(variants: Mapping[str, Rows], names: Iterable[str], cell: Any) -> str:
    """Returns a Markdown table: one row per key that `cell` returns, one column per variant."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for variant, found_there in variants.items():
        for row in found_there:
            if (named := cell(row)) is not None:
                rows.setdefault(named[0], {})[variant] = named[1]
    columns = [*names, *variants]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [
        f"| {' | '.join([*key, *(cells.get(v, '') for v in variants)])} |"
        for key, cells in rows.items()
    ]
    return "\n".join(line.replace("\u00a0", " ").replace("−", "-") for line in lines)


def markdown(variants: Mapping[str, dict[str, Rows]]) -> str:
    """Returns all tables that the variants have."""

    def of(name: str) -> dict[str, Rows]:
        return {variant: tables[name] for variant, tables in variants.items()}

    parts = [
        side_by_side(
            of("sets"), ["questions in a set"], lambda r: ((r["domain"],), f"{r['size']:g}")
        ),
        side_by_side(
            of("balance"),
            ["distance from I", "of"],
            _distance,
        ),
        side_by_side(
            of("base"),
            ["base model", "group"],
            lambda r: ((r["domain"], r["group"]), interval(r, "accuracy")),
        ),
        side_by_side(
            _sorted(of("settings")),
            ["accuracy", "group"],
            lambda r: ((setting_name(r["setting"]), r["group"]), interval(r, "accuracy")),
        ),
        side_by_side(
            of("comparisons"),
            ["difference", "group"],
            lambda r: ((pair(r), r["group"]), interval(r, "difference", sign=True)),
        ),
        side_by_side(of("best_ratio"), ["best ratio", "group"], _best),
        side_by_side(
            of("correlation"),
            ["rho within domains", "group"],
            lambda r: (
                (r["measure"], r["group"]),
                interval(r, "rho_within", share=False, sign=True, ends=("low", "high")),
            ),
        ),
        side_by_side(
            _sorted(of("abstention")),
            ["refused of known / of unknown, F1, AP, accuracy where answered", "group"],
            lambda r: ((setting_name(r["setting"]), r["group"]), _refused(r)),
        ),
        side_by_side(
            _sorted(of("generated")),
            ["by letter / by written answer, agreement, names no option", "group"],
            _written,
        ),
    ]
    parts.append(_mechanisms(_sorted(of("mechanisms"))))
    return "\n\n".join(part for part in parts if part.count("\n") > 1)


def _mechanisms(variants: Mapping[str, Rows]) -> str:
    """Returns one row per variant and setting with a column per measure that some row has."""
    by_measure = {
        name: [
            {"variant": variant, "setting": row["setting"], "shown": interval(row, name)}
            for variant, rows in variants.items()
            for row in rows
        ]
        for name in (column.title for column in MECHANISMS)
        if any(name in row for rows in variants.values() for row in rows)
    }
    return side_by_side(
        by_measure,
        ["variant", "arms"],
        lambda r: ((r["variant"], setting_name(r["setting"])), r["shown"]),
    )


def _sorted(variants: dict[str, Rows]) -> dict[str, Rows]:
    order = {
        s: i
        for i, s in enumerate(
            in_order(list({row["setting"] for rows in variants.values() for row in rows}))
        )
    }
    return {
        variant: sorted(rows, key=lambda row: order[row["setting"]])
        for variant, rows in variants.items()
    }


def _distance(row: dict[str, Any]) -> tuple[tuple[str, str], str] | None:
    """Returns None without a distance from an incompatible set."""
    if "before" not in row:
        return None
    moved = f"{number(row['before'])} -> {number(row['after'])}"
    return (row["covariate"], setting_name(row["setting"])), " ".join(
        filter(None, [moved, over(row)])
    )


def _best(row: dict[str, Any]) -> tuple[tuple[str, str], str] | None:
    if row["domain"] != "all":
        return None
    text = " ".join(filter(None, [f"{row['best_ratio']:g}", over(row)]))
    if "difference" in row:
        difference = interval(row, "difference", sign=True, ends=("low", "high"))
        text += f"; {row['best_other']:g} compared with 1: {difference}"
    return ("all domains", row["group"]), text


def _refused(row: dict[str, Any]) -> str:
    cells = [" / ".join(_with(row, name, points) for name in ("refused_known", "refused_unknown"))]
    cells += [_with(row, name, number) for name in ("f1", "average_precision")]
    return ", ".join([*cells, interval(row, "accuracy_answered")])


def _written(row: dict[str, Any]) -> tuple[tuple[str, str], str]:
    shares = COLUMNS["generated"].split()[4:]
    return (setting_name(row["setting"]), row["group"]), " / ".join(
        _with(row, name, points) for name in shares
    )


def _with(row: dict[str, Any], name: str, show: Any) -> str:
    """Formats a cell, with its domains if they are not all of the run's."""
    return " ".join(filter(None, [show(row.get(name)), over(row, name) if name in row else ""]))


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
def main(config: str) -> None:
    """Store and print the results of the finished study or run CONFIG."""
    study = load_study(config)
    runs = study.variants or {"run": study.config}
    variants = {name: found(variant) for name, variant in runs.items()}
    path = store_inputs(Path(study.config.output_dir).name, variants)
    print(f"{path}\n\n{markdown(variants)}")


if __name__ == "__main__":
    main()
