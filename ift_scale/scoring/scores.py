"""From raw log-probabilities to scores: shard tables in, score tables and a running summary out.

The expected calibration error is Guo et al.'s (2017, arXiv 1706.04599). `blocks` has the letters'
prior, `grades` the grades.

Shapes: Q questions of one option count C, V views of each.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ift_scale.config.engines import ReliabilityConfig
from ift_scale.io.files import atomic_path, read_parquet
from ift_scale.prompts.views import num_configured
from ift_scale.records import GRADES, Score
from ift_scale.scoring.blocks import Block, blocks, softmax
from ift_scale.scoring.cloze import NUM_BINS, ClozeSummary, calibration_bins
from ift_scale.scoring.grades import GradeInputs, grade_beyond_chance, grade_inputs, grade_of
from ift_scale.scoring.letter_prior import LetterPrior, debiased
from ift_scale.scoring.shards import read_shard

_WHO = [
    (name, pa.string())
    for name in ("kind", "question_id", "domain", "subject", "collection", "split", "group")
]
_PLAIN = [
    ("answer", pa.int16()),
    ("logprobs", pa.list_(pa.float64())),
    ("probs", pa.list_(pa.float64())),
    ("letter_mass", pa.float64()),
    ("prediction", pa.int16()),
    ("confidence", pa.float64()),
    ("correct", pa.bool_()),
]
_CLOZE = [("cloze_logprobs", pa.list_(pa.float64())), ("cloze_prediction", pa.int16())]
_RELIABILITY = [
    ("average_probs", pa.list_(pa.float64())),
    ("debiased_probs", pa.list_(pa.float64())),
    ("view_agreement", pa.float64()),
    *_CLOZE,
    ("grade", pa.string()),
    ("greedy_right", pa.float64()),
    ("sampled_right", pa.float64()),
]
_FREE = [("response", pa.string()), ("f1", pa.float64()), ("samples", pa.list_(pa.string()))]
SCHEMA = pa.schema([*_WHO, *_PLAIN, *_RELIABILITY, *_FREE])
_GENERATED = [
    ("response", pa.string()),
    ("f1", pa.float64()),
    ("generated_prediction", pa.int16()),
    ("refused", pa.bool_()),
]


def arm_schema(cloze: bool, generated: bool) -> pa.Schema:
    """Returns the schema of an arm's scores, whose columns depend on what it was asked."""
    more = [*(_CLOZE if cloze else ()), *(_GENERATED if generated else ())]
    return pa.schema([*_WHO, *_PLAIN, *more])


@dataclass
class ChoiceSummary:
    """Statistics of all choice scores for the report, accumulated block by block."""

    questions: int = 0
    correct: float = 0
    letter_mass: float = 0
    brier: float = 0
    multi_view: int = 0
    """Questions with several views; `agreement` sums their shares of views that agree."""
    agreement: float = 0
    cloze: ClozeSummary = field(default_factory=ClozeSummary)
    bins: np.ndarray = field(default_factory=lambda: np.zeros((3, NUM_BINS)))
    """Questions, summed confidence and correct answers, by confidence bin."""
    letters: dict[int, np.ndarray] = field(default_factory=dict)
    """Per option count (4, C): answers, right predictions, probability over rotations, views."""
    grades: dict[str, int] = field(default_factory=dict)

    def add(self, block: Block, probs_QC: np.ndarray, correct_Q: np.ndarray) -> None:
        self.questions += len(correct_Q)
        self.correct += float(correct_Q.sum())
        self.letter_mass += float(np.exp(block.logprobs[:, 0]).sum())
        confidence_Q = probs_QC.max(-1)
        truth_QC = np.eye(probs_QC.shape[-1])[block.answer]
        self.brier += float(((probs_QC - truth_QC) ** 2).sum())
        self.bins += calibration_bins(confidence_Q, correct_Q)
        num_choices = probs_QC.shape[-1]
        by_letter = self.letters.setdefault(num_choices, np.zeros((4, num_choices)))
        right = block.probs[:, 0].argmax(-1) == block.answer
        by_letter[0] += np.bincount(block.answer, minlength=num_choices)
        by_letter[1] += np.bincount(block.answer, right, num_choices)
        # Over complete rotations each content meets each letter, so what remains is letter bias.
        whole = block.rotations.sum(1) == num_choices
        if num_choices > 1 and whole.any():
            shown = softmax(block.logprobs[whole]) * block.rotations[whole][..., None]
            by_letter[2] += shown.sum((0, 1))
            by_letter[3] += whole.sum() * num_choices

    def as_json(self, prior: LetterPrior) -> dict[str, Any]:
        n = max(self.questions, 1)
        count, confidence, right = self.bins
        out: dict[str, Any] = {
            "questions": self.questions,
            "accuracy": self.correct / n,
            "mean_letter_mass": self.letter_mass / n,
            "brier": self.brier / n,
            "ece": float(np.abs(confidence - right).sum() / n),
            "calibration": [
                {
                    "questions": int(count[b]),
                    "confidence": confidence[b] / count[b],
                    "accuracy": right[b] / count[b],
                }
                for b in np.flatnonzero(count).tolist()
            ],
            "letters": {
                str(num): _letters(by_letter, prior.of(num))
                for num, by_letter in sorted(self.letters.items())
            },
        }
        if self.multi_view:
            out["views"] = {
                "questions": self.multi_view,
                "agreement": self.agreement / self.multi_view,
            }
        if self.cloze.questions:
            out["cloze"] = self.cloze.as_json()
        if self.grades:
            out["grades"] = {grade: self.grades.get(grade, 0) for grade in GRADES}
        return out


def _letters(by_letter: np.ndarray, prior_C: np.ndarray | None) -> dict[str, Any]:
    """Returns statistics by letter.

    Recall and its standard deviation (RStd of Zheng et al.), the mean probability over all
    rotations, and the letter-bias score: its total-variation distance from uniform, 0 for no bias.
    """
    answers, right, mass, views = by_letter
    recall = np.divide(right, answers, out=np.full(len(answers), np.nan), where=answers > 0)
    out: dict[str, Any] = {
        "recall": [None if np.isnan(r) else float(r) for r in recall],
        "recall_std": float(np.nanstd(recall)),
    }
    if views[0] > 0:
        share = mass / views
        out |= {
            "probability": share.tolist(),
            "letter_bias": float(np.abs(share - 1 / len(share)).sum() / 2),
        }
    if prior_C is not None:
        out["prior"] = prior_C.tolist()
    return out


class ChoiceScores:
    """Turns shards of choice questions into rows of SCHEMA and accumulates the summary."""

    def __init__(self, config: ReliabilityConfig):
        self.config = config
        self.prior, self.summary = LetterPrior(), ChoiceSummary()

    def estimate_prior(self, shards: list[Path]) -> None:
        """Estimates the letter prior in a first pass; does nothing unless `prior_share` is set."""
        if self.config.prior_share > 0:
            for path in shards:
                for block in blocks(read_shard(path, ["draws", "orders", "logprobs", "answer"])):
                    self.prior.add(block)

    def rows(self, table: pa.Table) -> pa.Table:
        """Returns the scores of a shard's questions, one row per question."""
        size = len(table)
        ids = table["id"].to_pylist()
        lists: dict[str, list[Any]] = {
            name: [None] * size
            for name in ("logprobs", "probs", "average_probs", "debiased_probs", "cloze_logprobs")
        }
        flat: dict[str, list[Any]] = {
            name: [None] * size
            for name in (
                "letter_mass",
                "prediction",
                "confidence",
                "correct",
                "view_agreement",
                "cloze_prediction",
                "grade",
                "greedy_right",
                "sampled_right",
            )
        }
        for block in blocks(table):
            for name, values in self._block(block, [ids[i] for i in block.rows.tolist()]).items():
                target = lists if name in lists else flat
                for row, value in zip(block.rows.tolist(), values.tolist(), strict=True):
                    target[name][row] = value
        columns = {"kind": ["choice"] * size, "question_id": ids, **lists, **flat}
        columns |= {
            name: table[name]
            for name in ("domain", "subject", "collection", "split", "group", "answer")
        }
        columns |= {name: [None] * size for name in ("response", "f1", "samples")}
        arrays = [
            pa.array(c, f.type) if isinstance(c := columns[f.name], list) else c for f in SCHEMA
        ]
        return pa.table(arrays, schema=SCHEMA)

    def _block(self, block: Block, ids: list[str]) -> dict[str, np.ndarray]:
        """Returns the score columns of one block, each of length Q."""
        plain_QC = block.probs[:, 0]
        out: dict[str, np.ndarray] = {}
        prior_C = self.prior.of(block.logprobs.shape[-1])
        own_QVC = block.probs[:, : num_configured(self.config, block.logprobs.shape[-1])]
        if own_QVC.shape[1] > 1:
            out["average_probs"] = own_QVC.mean(1)
        if prior_C is not None:
            out["debiased_probs"] = debiased(block, prior_C)
        probs_QC = plain_QC
        if self.config.cloze and block.cloze is not None:
            cloze_QC = self.summary.cloze.probabilities(self.config.cloze, block)
            out |= {"cloze_logprobs": block.cloze, "cloze_prediction": cloze_QC.argmax(-1)}
        if self.config.decide_by == "cloze":
            probs_QC = cloze_QC
        elif self.config.decide_by == "average":
            probs_QC = out.get("average_probs", plain_QC)
        elif self.config.decide_by == "debiased":
            # Every option count has a prior: the probe checks this before it asks.
            probs_QC = out["debiased_probs"]
        prediction_Q = probs_QC.argmax(-1)
        if own_QVC.shape[1] > 1:
            out["view_agreement"] = (own_QVC.argmax(-1) == prediction_Q[:, None]).mean(1)
            self.summary.agreement += float(out["view_agreement"].sum())
            self.summary.multi_view += len(prediction_Q)
        if self.config.grades:
            inputs = grade_inputs(block, ids, self.config)
            out |= {"greedy_right": inputs.greedy_right, "sampled_right": inputs.sampled_right}
            out["grade"] = np.array(GRADES)[self._grades(inputs, block.logprobs.shape[-1])]
            for name, count in zip(*np.unique(out["grade"], return_counts=True), strict=True):
                self.summary.grades[str(name)] = self.summary.grades.get(str(name), 0) + int(count)
        self.summary.add(block, probs_QC, prediction_Q == block.answer)
        return out | {
            "logprobs": block.logprobs[:, 0],
            "letter_mass": np.exp(block.logprobs[:, 0]).sum(-1),
            "probs": probs_QC,
            "prediction": prediction_Q,
            "confidence": probs_QC.max(-1),
            "correct": prediction_Q == block.answer,
        }

    def _grades(self, inputs: GradeInputs, num_choices: int) -> np.ndarray:
        if self.config.grade_rule == "paper":
            return grade_of(inputs.greedy_right, inputs.sampled_right)
        counts = inputs.num_draws, inputs.num_samples
        return grade_beyond_chance(
            inputs.greedy_right,
            inputs.sampled_right,
            *counts,
            1 / num_choices,
            self.config.grade_level,
        )


def write_rows(
    path: Path, schema: pa.Schema, shards: list[Path], rows_of: Callable[[pa.Table], pa.Table]
) -> None:
    """Merges shards into one Parquet file with one row group per shard, one shard in memory."""
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for shard in shards:
            writer.write_table(rows_of(read_shard(shard)).select(schema.names))


def train_scores(path: Path) -> dict[str, Score]:
    """Returns the probe's scores of the pool's train questions by id. `path`: probe.parquet."""
    trained = [("collection", "=", "pool"), ("split", "=", "train")]
    return {score.question_id: score for score in read_parquet(path, Score, trained)}
