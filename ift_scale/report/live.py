"""Live knowledge in the report: a table of every measurement of every arm, and its curves."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ift_scale.records import GRADES, Arm

FILE = "live.csv"
MEASURES = {
    "accuracy": "accuracy",
    "rank_correlation": "rank correlation",
    "divergence": "KL, nats",
}


def table(train: Path, arms: Sequence[Arm]) -> pd.DataFrame:
    """One row an arm and measurement; a grade's accuracy in a column of its name. Empty where nothing was measured."""
    rows = []
    for arm in arms:
        path = train / arm.name / "live.jsonl"
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                grades = {name: found["accuracy"] for name, found in row.pop("grades", {}).items()}
                rows.append(arm.model_dump(exclude={"domains"}) | row | grades)
    return pd.DataFrame(rows)


def graded(found: pd.DataFrame) -> list[str]:
    return [grade for grade in GRADES if grade in found]


def curve(arms: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Mean, least and largest value over seeds at every step where one of the arms was asked. `arms`: of one domain and setting.

    Between its measurements an arm's value is interpolated, behind its last one held: one that stopped early stays what it is.
    """
    steps = np.unique(arms.step)
    values = np.array([np.interp(steps, arm.step, arm[measure]) for _, arm in arms.groupby("seed")])
    return pd.DataFrame(
        {"step": steps, "mean": values.mean(0), "low": values.min(0), "high": values.max(0)}
    )
