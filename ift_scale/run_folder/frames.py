"""Stored artifacts as pandas frames, one function per kind of file."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ift_scale.io.jsonl import count
from ift_scale.io.manifests import read_manifest
from ift_scale.records import Arm, Example, Question
from ift_scale.report.live import table as live_table
from ift_scale.stage import trained_arm

ARM_COLUMNS = ["arm", "arm_domain", "setting", "seed"]
"""The first columns of every frame with rows of several arms."""
QUESTION_COLUMNS = list(Question.model_fields)
SET_COLUMNS = [
    *ARM_COLUMNS, "position", "question_id", "domain", "target", "consistent", "wording", "ratio",
    "weight", "prompt", "response",
]  # fmt: skip


def arm_row(arm: Arm) -> dict[str, Any]:
    return {"arm": arm.name, "arm_domain": arm.domain, "setting": arm.setting, "seed": arm.seed}


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def arms(root: Path, arm_list: Sequence[Arm]) -> pd.DataFrame:
    """One row per arm of the run's folder `root`."""
    rows = []
    for arm in arm_list:
        sets, name = root / "construct", f"{trained_arm(arm).name}.jsonl"
        built = read_manifest(sets)
        row = arm_row(arm)
        row["examples"] = count(sets / name) if built and name in built.files else None
        row["trained"] = read_manifest(root / "train" / arm.name) is not None
        row["evaluated"] = read_manifest(root / "evaluate" / arm.name) is not None
        rows.append(row)
    return pd.DataFrame(rows).astype({"examples": "Int64"})


def questions(path: Path) -> pd.DataFrame:
    """One row per question of all splits; columns as in `records.Question`."""
    frame = pd.DataFrame.from_records(list(json_lines(path))).reindex(columns=QUESTION_COLUMNS)
    return frame.astype({"answer": "Int16", "explanation": "string", "group": "string"})


def score_file(path: Path) -> pd.DataFrame:
    """A Parquet file of scores. Indices of options are Int16, missing ones <NA>."""
    frame = pd.read_parquet(path)
    indices = ("answer", "prediction", "cloze_prediction", "generated_prediction")
    return frame.astype({name: "Int16" for name in indices if name in frame})


def of_arms(parts: Iterable[tuple[Arm, pd.DataFrame]]) -> pd.DataFrame:
    """The arms' frames under each other, with ARM_COLUMNS first."""
    marked = []
    for arm, part in parts:
        row = arm_row(arm)
        for number, name in enumerate(ARM_COLUMNS):
            part.insert(number, name, row[name])
        marked.append(part)
    return pd.concat(marked, ignore_index=True)


def example_rows(arm: Arm, path: Path) -> pd.DataFrame:
    """One row per training example, in the set's order. General instructions have no question."""
    rows = []
    for position, row in enumerate(json_lines(path)):
        example = Example.model_construct(**row)
        texts: dict[str, list[str]] = {"user": [], "assistant": []}
        for message in row["messages"]:
            texts.setdefault(message["role"], []).append(message["content"])
        meta = {"position": position, **dict(example.meta)}
        rows.append(
            meta | {"prompt": "\n".join(texts["user"]), "response": "\n".join(texts["assistant"])}
        )
    columns = SET_COLUMNS[len(ARM_COLUMNS) :]
    return (
        pd.DataFrame.from_records(rows).reindex(columns=columns).astype({"consistent": "boolean"})
    )


_NULLABLE = ("loss", "grad_norm", "mfu", "validation_loss")


def step_rows(path: Path) -> pd.DataFrame:
    """One row per optimizer step of an arm: the fields of its metrics.jsonl. NaN for null.

    `validation_loss` is NaN for steps after which it was not measured.
    """
    frame = pd.DataFrame.from_records(list(json_lines(path)))
    return frame.astype({name: float for name in _NULLABLE if name in frame})


def live(train: Path, arm_list: Sequence[Arm]) -> pd.DataFrame:
    """One row per live measurement of the arms; a grade's accuracy is in a column of its name."""
    found = live_table(train, arm_list).rename(columns={"domain": "arm_domain"})
    if not len(found):
        return pd.DataFrame(columns=ARM_COLUMNS)
    names = [Arm(domain=d, setting=s, seed=n).name for d, s, n in found.iloc[:, :3].to_numpy()]
    found.insert(0, "arm", names)
    return found


def with_test_groups(scores: pd.DataFrame, arm_list: Sequence[Arm]) -> pd.DataFrame:
    """The arms' scores with the groups of the analysed tables: HOMO, ID, OOD, a benchmark's own."""
    by_name = {arm.name: arm for arm in arm_list}
    keys = zip(scores.arm, scores.domain, scores.collection, scores.group, strict=True)
    scores["group"] = [
        by_name[arm].test_group(domain, collection, group if isinstance(group, str) else None)
        for arm, domain, collection, group in keys
    ]
    return scores


def joined(frames: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """The frames of a study's variants under each other, with the column `variant` first."""
    for name, frame in frames:
        frame.insert(0, "variant", name)
    return pd.concat([frame for _, frame in frames], ignore_index=True)
