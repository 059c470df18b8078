"""Live knowledge in the report: every measurement of every arm, and curves over steps."""

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
    """Returns one row per arm and measurement, with a column of accuracy per grade."""
    rows = []
    for arm in arms:
        path = train / arm.name / "live.jsonl"
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                grades = {name: frame["accuracy"] for name, frame in row.pop("grades", {}).items()}
                rows.append(arm.model_dump(exclude={"domains"}) | row | grades)
    return pd.DataFrame(rows)


def graded(frame: pd.DataFrame) -> list[str]:
    return [grade for grade in GRADES if grade in frame]


def curve(arms: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Returns the mean, minimum and maximum over seeds at every step with a measurement.

    `arms` is the table of one domain and setting. An arm's values are interpolated between its
    measurements; after its last one (early stopping) the value stays constant.
    """
    steps = np.unique(arms.step)
    values = np.array([np.interp(steps, arm.step, arm[measure]) for _, arm in arms.groupby("seed")])
    return pd.DataFrame(
        {"step": steps, "mean": values.mean(0), "low": values.min(0), "high": values.max(0)}
    )
