"""What a report is made of, read once: tables of the analyse and construct stages, manifests, curves, example questions.

A table that a run does not have, or has without rows, is empty here: its section is left out or says why.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ift_scale.config import Config
from ift_scale.io.manifests import Manifest
from ift_scale.records import Arm, Question
from ift_scale.report import live
from ift_scale.treatments import POOLED, in_order

ALL, SHARED = "all", "shared"
GROUPS = ("HOMO", "ID", "OOD")
COLUMNS = {
    "arms": "domain setting seed group questions accuracy accuracy_low accuracy_high consistency kl agreement letter_mass",
    "settings": "setting domain group seeds questions domains of_domains over ratio interval_over accuracy accuracy_low "
    "accuracy_high consistency consistency_low consistency_high kl kl_low kl_high agreement agreement_low agreement_high",
    "comparisons": "first second domain group seeds questions domains of_domains difference difference_low difference_high p "
    "holm_p detectable questions_low questions_high mcnemar_p",
    "base": "domain group questions accuracy accuracy_low accuracy_high confidence",
    "transitions": "setting domain group domains of_domains right_right right_wrong wrong_right wrong_wrong",
    "grades": "setting domain group grade questions domains of_domains accuracy accuracy_low accuracy_high consistency",
    "correlation": "measure group n seeds domains of_domains rho p p_within low high reason",
    "correlation_points": "domain setting ratio group consistency kl accuracy base_accuracy",
    "best_ratio": "domain group seeds domains of_domains best_ratio accuracy best_other difference low high",
    "abstention": "setting domain group domains of_domains refused refused_known refused_unknown answered accuracy_answered "
    "accuracy_answered_low accuracy_answered_high f1 average_precision",
    "generated": "setting domain group domains of_domains letter_accuracy generated_accuracy agreement unparsed",
    "balance": "domain seed stage setting covariate level value distance",
}
"""Of every table, the columns that the report reads beside `reason`, which says why a value is missing; some may lack."""
_EXAMPLES = "examples.jsonl"
_SHOWN = ("domain", "group", "base_prediction", "base_confidence", "predictions")


@dataclass(frozen=True)
class Sources:
    """What a report is made of."""

    tables: Path
    train: Path
    arms: list[Arm]
    manifests: dict[str, list[Manifest]]
    """Manifests of each stage, an arm's own for train and evaluate."""
    run_seconds: dict[str, dict[str, float]]
    """Seconds of a stage's whole latest run, by part: what no single arm's manifest holds."""
    chance: float
    knowledge: dict[str, Any]
    """The probe's knowledge.json."""
    balance: Path
    """The construct stage's table of how the sets differ."""
    questions: Path
    audit: dict[str, Any] = field(default_factory=dict)
    """The questions stage's audit.json: questions that stand twice, where it looked for them."""


@dataclass(frozen=True)
class Shown:
    """An example question with what was answered to it."""

    question: Question
    domain: str
    """Of the arms that were asked."""
    group: str
    base: int | None
    confidence: float | None
    predictions: dict[str, int | None]


def read(path: Path, name: str) -> pd.DataFrame:
    """A table with at least its COLUMNS, empty where there is no file or no row; a domain may be called NA."""
    columns = [*dict.fromkeys([*COLUMNS[name].split(), "reason"])]
    try:
        found = pd.read_csv(path, keep_default_na=False, na_values=["", "nan"])
    except (FileNotFoundError, pd.errors.EmptyDataError):
        found = pd.DataFrame(columns=columns)
    return found.reindex(columns=[*columns, *(c for c in found if c not in columns)])


def is_free(group: str) -> bool:
    """Whether it is the group of another's free questions, which nobody answers by chance."""
    return group.endswith(" free")


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Rows over all domains that a setting has; of a table without such rows, those of its only domain, or none."""
    if (table.domain == ALL).any():
        return table[table.domain == ALL]
    own = without_pooled(table)
    return own if own.domain.nunique() == 1 else own.iloc[:0]


def without_pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of single domains; those across domains where there are no others."""
    return table[table.domain != POOLED] if (table.domain != POOLED).any() else table


class Facts:
    """The sources with their tables."""

    def __init__(self, config: Config, sources: Sources):
        self.config, self.sources = config, sources
        self.level = f"{config.analyse.confidence_level * 100:g}%"
        self.files = {name: sources.tables / f"{name}.csv" for name in COLUMNS} | {
            "balance": sources.balance
        }
        self._read: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._read:
            self._read[name] = read(self.files[name], name)
        return self._read[name]

    @cached_property
    def live(self) -> pd.DataFrame:
        return live.table(self.sources.train, self.sources.arms)

    @cached_property
    def settings(self) -> list[str]:
        return in_order(list(dict.fromkeys(arm.setting for arm in self.sources.arms)))

    @cached_property
    def groups(self) -> list[str]:
        there = list(dict.fromkeys(self["settings"].group))
        first = [*GROUPS, *(f"{group} free" for group in GROUPS)]
        return [g for g in first if g in there] + [g for g in there if g not in first]

    @cached_property
    def domains(self) -> list[str]:
        """The domains that arms were trained on, the one across domains last."""
        found = list(dict.fromkeys(arm.domain for arm in self.sources.arms))
        return [d for d in found if d != POOLED] + [POOLED] * (POOLED in found)

    @cached_property
    def single_domains(self) -> list[str]:
        return [domain for domain in self.domains if domain != POOLED]

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({arm.seed for arm in self.sources.arms})

    @cached_property
    def place(self) -> str:
        """What `overall` rows are about, in words."""
        own = self.single_domains or self.domains
        return own[0] if len(own) == 1 else f"mean over {len(own)} domains"

    def ordered(self, table: pd.DataFrame) -> pd.DataFrame:
        """Rows with the settings and groups in the report's order."""
        order = {
            setting: i for i, setting in enumerate(in_order(list(dict.fromkeys(table.setting))))
        }
        groups = {group: i for i, group in enumerate(self.groups)}
        keyed = table.assign(
            _s=table.setting.map(order), _g=table.group.map(groups) if "group" in table else 0
        )
        return keyed.sort_values(["_s", "_g"], kind="stable").drop(columns=["_s", "_g"])

    def examples(self) -> list[Shown]:
        """The example questions with their texts; what the questions' file does not hold, or is no choice, is left out."""
        path, source = self.sources.tables / _EXAMPLES, self.sources.questions
        if not path.is_file() or not source.is_file():
            return []
        rows = [
            json.loads(line)
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        texts = {
            question.id: question
            for question in _questions(source, {row["question_id"] for row in rows})
        }
        return [
            Shown(texts[row["question_id"]], *(row.get(name) for name in _SHOWN))
            for row in rows
            if row["question_id"] in texts and texts[row["question_id"]].choices
        ]


def _questions(path: Path, wanted: set[str]) -> Iterator[Question]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["id"] in wanted:
                yield Question.model_construct(**row)
