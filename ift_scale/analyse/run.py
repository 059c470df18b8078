"""The analyse stage: probe and evaluation scores in, tables of accuracy, consistency and paired differences out (CSV).

- arms.csv: one row an arm and group: accuracy with Wilson's interval, rank correlation and KL against the base model.
- settings.csv: a setting's means over seeds, for each domain and for all, with bootstrap intervals.
- comparisons.csv: paired differences of two settings on the same questions, with bootstrap intervals.
- base.csv: the base model, few-shot, on the same questions.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ift_scale import artifacts
from ift_scale.analyse.statistics import Interval, Table, two_way_bootstrap, wilson
from ift_scale.config import AnalyseConfig, Config
from ift_scale.inference.agreement import kl_divergence, rank_pearson
from ift_scale.progress import Bar
from ift_scale.records import Arm, Score

VERSION = 1
GROUPS = ("HOMO", "ID", "OOD")
ALL_DOMAINS = "all"
COMPARISONS = (("harmonious", "incompatible"), ("self_aligning", "incompatible"), ("harmonious", "self_aligning"))
MEASURES = ("accuracy", "consistency", "kl")


@dataclass(frozen=True)
class ArmScores:
    """One arm's evaluation, beside its group names: questions of HOMO, ID and OOD."""

    arm: Arm
    groups: dict[str, list[Score]]


def question_rows(arms: Sequence[ArmScores], base: dict[str, Score]) -> pd.DataFrame:
    """One row an arm and question: accuracy (0 or 1), consistency with the base model's ranks, KL(base || arm) in nats."""
    parts = []
    for evaluated in arms:
        for group, scores in evaluated.groups.items():
            for num_choices in sorted({len(score.probs or ()) for score in scores}):
                chosen = [score for score in scores if len(score.probs or ()) == num_choices]
                before = np.array([base[score.question_id].probs for score in chosen])
                after = np.array([score.probs for score in chosen])
                columns = {
                    "question_id": [score.question_id for score in chosen],
                    "accuracy": [float(score.correct) for score in chosen],
                    "consistency": rank_pearson(before, after),
                    "kl": kl_divergence(before, after),
                    "letter_mass": [score.letter_mass for score in chosen],
                }
                parts.append(pd.DataFrame(columns).assign(group=group, **evaluated.arm.model_dump(exclude={"domains"})))
    return pd.concat(parts, ignore_index=True)


def arm_table(rows: pd.DataFrame, level: float) -> pd.DataFrame:
    out = []
    for (domain, setting, seed, group), part in rows.groupby(["domain", "setting", "seed", "group"], sort=False):
        accuracy = wilson(int(part.accuracy.sum()), len(part), level)
        row = {"domain": domain, "setting": setting, "seed": seed, "group": group, "questions": len(part)}
        row |= _columns("accuracy", accuracy)
        row |= {name: part[name].mean() for name in ("consistency", "kl", "letter_mass")}
        out.append(row)
    return pd.DataFrame(out)


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _table(rows: pd.DataFrame, measure: str) -> Table:
    """Seeds and questions in sorted order."""
    values = rows.pivot(index="seed", columns="question_id", values=measure)
    return Table(values.to_numpy(), list(values.columns))


def _domain_choices(rows: pd.DataFrame) -> list[tuple[str, list[str]]]:
    domains = list(dict.fromkeys(rows.domain))
    return [(domain, [domain]) for domain in domains] + ([(ALL_DOMAINS, domains)] if len(domains) > 1 else [])


def setting_table(rows: pd.DataFrame, config: AnalyseConfig) -> pd.DataFrame:
    out = []
    for setting in dict.fromkeys(rows.setting):
        for name, domains in _domain_choices(rows):
            for group in _groups(rows):
                parts = [rows[(rows.setting == setting) & (rows.domain == d) & (rows.group == group)] for d in domains]
                parts = [part for part in parts if len(part)]
                if not parts:
                    continue
                row = {"setting": setting, "domain": name, "group": group, "seeds": parts[0].seed.nunique()}
                row["questions"] = len({q for part in parts for q in part.question_id})
                for measure in MEASURES:
                    tables = [_table(part, measure) for part in parts]
                    interval = two_way_bootstrap(tables, config.bootstrap_samples, config.confidence_level, config.seed)
                    row |= _columns(measure, interval)
                out.append(row)
    return pd.DataFrame(out)


def comparison_table(rows: pd.DataFrame, config: AnalyseConfig) -> pd.DataFrame:
    """Paired differences, first setting minus second, on the same questions and seeds."""
    out = []
    there = set(rows.setting)
    for first, second in COMPARISONS:
        if not {first, second} <= there:
            continue
        for name, domains in _domain_choices(rows):
            for group in _groups(rows):
                tables = []
                for domain in domains:
                    part = rows[(rows.domain == domain) & (rows.group == group)]
                    if len(part):
                        a, b = (_table(part[part.setting == setting], "accuracy") for setting in (first, second))
                        tables.append(Table(a.values - b.values, a.questions))
                if not tables:
                    continue
                interval = two_way_bootstrap(tables, config.bootstrap_samples, config.confidence_level, config.seed)
                row: dict[str, Any] = {
                    "first": first,
                    "second": second,
                    "domain": name,
                    "group": group,
                    "seeds": len(tables[0].values),
                }
                row |= {"questions": len({q for table in tables for q in table.questions})} | _columns("difference", interval)
                out.append(row | {"excludes_zero": interval.low > 0 or interval.high < 0})
    columns = [
        "first",
        "second",
        "domain",
        "group",
        "seeds",
        "questions",
        "difference",
        "difference_low",
        "difference_high",
        "excludes_zero",
    ]
    return pd.DataFrame(out, columns=columns)


def base_table(rows: pd.DataFrame, base: dict[str, Score], level: float) -> pd.DataFrame:
    """The base model's few-shot accuracy on each domain's groups."""
    out = []
    for (domain, group), part in rows.groupby(["domain", "group"], sort=False):
        scores = [base[id] for id in part.question_id.unique()]
        interval = wilson(sum(score.correct for score in scores), len(scores), level)
        confidence = float(np.mean([score.confidence for score in scores]))
        out.append(
            {"domain": domain, "group": group, "questions": len(scores)}
            | _columns("accuracy", interval)
            | {"confidence": confidence}
        )
    return pd.DataFrame(out)


def _groups(rows: pd.DataFrame) -> list[str]:
    return [group for group in GROUPS if (rows.group == group).any()]


def run(
    config: Config, folder: Path, key: str, inputs: dict[str, str], arms: list[ArmScores], base: dict[str, Score], bar: Bar
) -> None:
    started = time.monotonic()
    bar.note("reading scores")
    rows = question_rows(arms, base)
    tables = {}
    level = config.analyse.confidence_level
    steps = {
        "arms": lambda: arm_table(rows, level),
        "settings": lambda: setting_table(rows, config.analyse),
        "comparisons": lambda: comparison_table(rows, config.analyse),
        "base": lambda: base_table(rows, base, level),
    }
    for name, make in steps.items():
        bar.note(name)
        tables[name] = make()
        bar.advance()
    with artifacts.atomic_folder(folder) as temporary:
        for name, table in tables.items():
            table.to_csv(temporary / f"{name}.csv", index=False)
        seconds = {"total": time.monotonic() - started}
        artifacts.write_manifest(temporary, "analyse", key, config.analyse.model_dump(), inputs, {"rows": len(rows)}, seconds)
