"""The inputs of a report, read once: tables, manifests, curves, example questions.

A table that is missing or has no rows is empty here; its section is left out or explains why.
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
from ift_scale.report.coverage import GROUPS
from ift_scale.treatments import POOLED, in_order

COLUMNS = {
    "arms": "domain setting seed group questions accuracy accuracy_low accuracy_high consistency "
    "kl agreement letter_mass",
    "settings": "setting domain group seeds questions domains of_domains over ratio interval_over "
    "accuracy accuracy_low accuracy_high consistency consistency_low consistency_high kl kl_low "
    "kl_high agreement agreement_low agreement_high",
    "comparisons": "first second domain group seeds questions domains of_domains difference "
    "difference_low difference_high p holm_p detectable questions_low questions_high mcnemar_p",
    "base": "domain group questions accuracy accuracy_low accuracy_high confidence",
    "transitions": "setting domain group domains of_domains right_right right_wrong wrong_right "
    "wrong_wrong",
    "grades": "setting domain group grade questions domains of_domains accuracy accuracy_low "
    "accuracy_high consistency",
    "correlation": "measure group n seeds domains of_domains rho p rho_within low high p_within "
    "reason",
    "correlation_points": "domain setting ratio group consistency kl accuracy base_accuracy",
    "best_ratio": "domain group seeds domains of_domains best_ratio accuracy best_other difference "
    "low high",
    "abstention": "setting domain group domains of_domains refused refused_known refused_unknown "
    "answered accuracy_answered accuracy_answered_low accuracy_answered_high f1 average_precision",
    "generated": "setting domain group domains of_domains letter_accuracy generated_accuracy "
    "agreement unparsed",
    "dose": "setting domain seeds domains of_domains treatment size kind amount base acquired "
    "acquired_low acquired_high forgotten forgotten_low forgotten_high acquired_change "
    "acquired_change_low acquired_change_high forgotten_change forgotten_change_low "
    "forgotten_change_high",
    "measures": "model group first second questions answers first_accuracy second_accuracy kappa",
    "learnt": "setting domain form grade domains of_domains seeds items new_items chance trained "
    "trained_low trained_high trained_before trained_before_low trained_before_high gain gain_low "
    "gain_high right "
    "right_low right_high right_before right_before_low right_before_high transfer transfer_low "
    "transfer_high new_transfer new_transfer_low new_transfer_high new_before new_before_low "
    "new_before_high",
    "learnt_points": "setting domain seed group fitted_unknown change",
    "learnt_curve": "group points known known_low known_high unknown unknown_low unknown_high "
    "r_squared",
    "hidden": "setting domain domains of_domains seeds questions decodable decodable_low "
    "decodable_high control selectivity selectivity_low selectivity_high expressed expressed_low "
    "expressed_high hidden hidden_low hidden_high unread unread_low unread_high change change_low "
    "change_high lost lost_questions lost_before lost_before_low lost_before_high lost_decodable "
    "lost_decodable_low lost_decodable_high unknown_decodable unknown_decodable_low "
    "unknown_decodable_high best_layer decision layers",
    "hidden_layers": "setting domain domains of_domains layer decodable decodable_low "
    "decodable_high control selectivity selectivity_low selectivity_high lens",
    "format_content": "setting domain group domains of_domains seeds questions few_shot_accuracy "
    "zero_shot_accuracy accuracy "
    + " ".join(
        f"{part}_{name}{end}"
        for part in ("format", "content", "total", "content_few_shot")
        for name in ("change", "consistency", "kl")
        for end in ("", "_low", "_high")
    ),
    "forgetting": "domain setting seed kl_own kl_other forgotten",
    "forgetting_fit": "measure arms domains slope slope_low slope_high r_squared "
    "r_squared_quadratic",
    "balance": "domain seed stage setting covariate level value distance",
}
"""The columns of each table that the report reads, besides `reason`; missing ones are NaN."""
_EXAMPLES = "examples.jsonl"
_SHOWN = ("domain", "group", "base_prediction", "base_confidence", "predictions")


@dataclass(frozen=True)
class ReportInputs:
    """The files and records of a finished run."""

    tables: Path
    train: Path
    arms: list[Arm]
    manifests: dict[str, list[Manifest]]
    """Manifests by stage; train and evaluate have one per arm."""
    run_seconds: dict[str, dict[str, float]]
    """Seconds by part of a stage's latest launch, which no single arm's manifest contains."""
    chance: float
    knowledge: dict[str, Any]
    """The probe's knowledge.json."""
    balance: Path
    """The construct stage's balance.csv."""
    questions: Path
    audit: dict[str, Any] = field(default_factory=dict)
    """The questions stage's audit.json: duplicate questions, if it searched for them."""


@dataclass(frozen=True)
class ExampleQuestion:
    """An example question with the answers to it."""

    question: Question
    domain: str
    """Domain of the arms that were asked."""
    group: str
    base: int | None
    confidence: float | None
    predictions: dict[str, int | None]


def read(path: Path, name: str) -> pd.DataFrame:
    """Reads a table with at least its COLUMNS; empty if the file is missing or has no rows."""
    columns = [*dict.fromkeys([*COLUMNS[name].split(), "reason"])]
    try:
        # "NA" may be the name of a domain.
        frame = pd.read_csv(path, keep_default_na=False, na_values=["", "nan"])
    except (FileNotFoundError, pd.errors.EmptyDataError):
        frame = pd.DataFrame(columns=columns)
    return frame.reindex(columns=[*columns, *(c for c in frame if c not in columns)])


class Facts:
    """A run's configuration, files and tables."""

    def __init__(self, config: Config, inputs: ReportInputs):
        self.config, self.inputs = config, inputs
        self.level = f"{config.analyse.confidence_level * 100:g}%"
        self.files = {name: inputs.tables / f"{name}.csv" for name in COLUMNS} | {
            "balance": inputs.balance
        }
        self._read: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._read:
            self._read[name] = read(self.files[name], name)
        return self._read[name]

    @cached_property
    def live(self) -> pd.DataFrame:
        return live.table(self.inputs.train, self.inputs.arms)

    @cached_property
    def settings(self) -> list[str]:
        return in_order(list(dict.fromkeys(arm.setting for arm in self.inputs.arms)))

    @cached_property
    def groups(self) -> list[str]:
        there = list(dict.fromkeys(self["settings"].group))
        first = [*GROUPS, *(f"{group} free" for group in GROUPS)]
        return [g for g in first if g in there] + [g for g in there if g not in first]

    @cached_property
    def domains(self) -> list[str]:
        """The domains that arms were trained on, the one across domains last."""
        frame = list(dict.fromkeys(arm.domain for arm in self.inputs.arms))
        return [d for d in frame if d != POOLED] + [POOLED] * (POOLED in frame)

    @cached_property
    def single_domains(self) -> list[str]:
        return [domain for domain in self.domains if domain != POOLED]

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({arm.seed for arm in self.inputs.arms})

    @cached_property
    def scope(self) -> str:
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

    def examples(self) -> list[ExampleQuestion]:
        """Returns the example questions with their texts.

        Free questions and those missing in the question file are left out.
        """
        path, source = self.inputs.tables / _EXAMPLES, self.inputs.questions
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
            ExampleQuestion(texts[row["question_id"]], *(row.get(name) for name in _SHOWN))
            for row in rows
            if row["question_id"] in texts and texts[row["question_id"]].choices
        ]


def _questions(path: Path, ids: set[str]) -> Iterator[Question]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["id"] in ids:
                yield Question.model_construct(**row)
