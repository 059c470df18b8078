"""What a study's variants found, as data and as tables for docs/results.md.

    ift-scale run configs/world_study.yaml
    python benchmarks/study.py configs/world_study.yaml

Reads the finished variants' analyse tables, stores means over the domains in benchmarks/results/NAME.json (NAME: the last part of
the study's output_dir), and prints them with a column for each variant.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import pandas as pd

from ift_scale.artifacts import read_manifest
from ift_scale.bench.rows import store_inputs
from ift_scale.config import Config
from ift_scale.config_file import load_study
from ift_scale.report.facts import overall, read
from ift_scale.report.html import interval, name_of, number, points
from ift_scale.report.sections.differences import pair
from ift_scale.treatments import in_order

Rows = list[dict[str, Any]]
COLUMNS = {
    "settings": "setting group accuracy accuracy_low accuracy_high consistency kl seeds questions",
    "comparisons": "first second group difference difference_low difference_high mcnemar_p holm_p detectable",
    "best_ratio": "domain group best_ratio accuracy best_other difference low high reason",
    "correlation": "measure group n rho low high p reason",
    "abstention": "setting group refused refused_known refused_unknown accuracy_answered accuracy_answered_low "
    "accuracy_answered_high f1 average_precision reason",
    "generated": "setting group letter_accuracy generated_accuracy agreement unparsed",
    "base": "domain group questions accuracy accuracy_low accuracy_high",
}
"""Of each table, what is kept of its rows over all domains (of best_ratio, correlation and base: of all rows)."""


def found(config: Config) -> dict[str, Rows]:
    """The rows of a variant's tables, its sets' sizes and their balance."""
    folder = Path(config.output_dir)
    out: dict[str, Rows] = {}
    for name, columns in COLUMNS.items():
        table = read(folder / "analyse" / f"{name}.csv", name)
        whole = table if name in ("best_ratio", "correlation", "base") else overall(table)
        out[name] = _plain(whole[[c for c in columns.split() if c in whole]])
    manifest = read_manifest(folder / "construct")
    assert manifest is not None, f"{folder}: not constructed"
    out["sets"] = [
        {"domain": k.removesuffix("/set_size"), "size": v} for k, v in manifest.counts.items() if k.endswith("/set_size")
    ]
    out["balance"] = _plain(balance(read(folder / "construct" / "balance.csv", "balance")))
    return out


def _plain(table: pd.DataFrame) -> Rows:
    """Without what is missing."""
    return [{name: value for name, value in row.items() if not pd.isna(value)} for row in table.to_dict("records")]


def balance(table: pd.DataFrame) -> pd.DataFrame:
    """The mean absolute distance from I over domains and seeds, by covariate and setting, before and after matching."""
    once = table.drop_duplicates(["domain", "seed", "stage", "setting", "covariate"])
    sized = once.assign(distance=pd.to_numeric(once.distance).abs())
    means = sized.groupby(["covariate", "setting", "stage"], sort=False).distance.mean().unstack("stage").reset_index()
    return means[["covariate", "setting", "before", "after"]]


def beside(variants: Mapping[str, Rows], names: Iterable[str], cell: Any) -> str:
    """A Markdown table: a row for each key that `cell` gives, a column for each variant."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for variant, found_there in variants.items():
        for row in found_there:
            if (told := cell(row)) is not None:
                rows.setdefault(told[0], {})[variant] = told[1]
    columns = [*names, *variants]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join([*key, *(cells.get(v, '') for v in variants)])} |" for key, cells in rows.items()]
    return "\n".join(line.replace("\u00a0", " ").replace("−", "-") for line in lines)


def markdown(variants: Mapping[str, dict[str, Rows]]) -> str:
    """All tables that the variants have."""

    def of(name: str) -> dict[str, Rows]:
        return {variant: tables[name] for variant, tables in variants.items()}

    parts = [
        beside(of("sets"), ["questions in a set"], lambda r: ((r["domain"],), f"{r['size']:g}")),
        beside(
            of("balance"),
            ["distance from I", "of"],
            _distance,
        ),
        beside(of("base"), ["base model", "group"], lambda r: ((r["domain"], r["group"]), interval(r, "accuracy"))),
        beside(
            _sorted(of("settings")), ["accuracy", "group"], lambda r: ((name_of(r["setting"]), r["group"]), interval(r, "accuracy"))
        ),
        beside(of("comparisons"), ["difference", "group"], lambda r: ((pair(r), r["group"]), interval(r, "difference", sign=True))),
        beside(of("best_ratio"), ["best ratio", "group"], _best),
        beside(
            of("correlation"),
            ["partial rho", "group"],
            lambda r: ((r["measure"], r["group"]), interval(r, "rho", share=False, sign=True, ends=("low", "high"))),
        ),
        beside(
            _sorted(of("abstention")),
            ["refused of known / of unknown, F1, AP, accuracy where answered", "group"],
            lambda r: ((name_of(r["setting"]), r["group"]), _refused(r)),
        ),
        beside(
            _sorted(of("generated")),
            ["by letter / by written answer, agreement, names no option", "group"],
            lambda r: ((name_of(r["setting"]), r["group"]), " / ".join(points(r[c]) for c in COLUMNS["generated"].split()[2:])),
        ),
    ]
    return "\n\n".join(part for part in parts if part.count("\n") > 1)


def _sorted(variants: dict[str, Rows]) -> dict[str, Rows]:
    order = {s: i for i, s in enumerate(in_order(list({row["setting"] for rows in variants.values() for row in rows})))}
    return {variant: sorted(rows, key=lambda row: order[row["setting"]]) for variant, rows in variants.items()}


def _distance(row: dict[str, Any]) -> tuple[tuple[str, str], str] | None:
    """None where there is no incompatible set to be far from."""
    if "before" not in row:
        return None
    return (row["covariate"], name_of(row["setting"])), f"{number(row['before'])} -> {number(row['after'])}"


def _best(row: dict[str, Any]) -> tuple[tuple[str, str], str] | None:
    if row["domain"] != "all":
        return None
    told = f"{row['best_ratio']:g}"
    if "difference" in row:
        told += f"; {row['best_other']:g} against 1: {interval(row, 'difference', sign=True, ends=('low', 'high'))}"
    return ("all domains", row["group"]), told


def _refused(row: dict[str, Any]) -> str:
    shares = " / ".join(points(row.get(name)) for name in ("refused_known", "refused_unknown"))
    return f"{shares}, {number(row.get('f1'))}, {number(row.get('average_precision'))}, {interval(row, 'accuracy_answered')}"


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
def main(config: str) -> None:
    """Store and print what the finished study CONFIG found."""
    study = load_study(config)
    variants = {name: found(variant) for name, variant in study.variants.items()}
    path = store_inputs(Path(study.config.output_dir).name, variants)
    print(f"{path}\n\n{markdown(variants)}")


if __name__ == "__main__":
    main()
