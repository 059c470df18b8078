"""Live knowledge: an arm's answers to its own held-out questions, measured on the training ranks.

Every rank computes its share of the packed prompts with the model's own forward pass, without
gradients, and reads the log-probabilities of the letters. From all of them each rank computes the
same measures.

Shapes: Q questions of up to C options, P scored positions, M measurements, R rows of a micro-batch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ift_scale.config.train import LiveConfig
from ift_scale.ranks import activity
from ift_scale.records import GRADES
from ift_scale.scoring.agreement import kl_divergence, rank_pearson
from ift_scale.train.data.collate import collate
from ift_scale.train.data.micro_batch import MicroBatch
from ift_scale.train.engine.deepspeed import TrainEngine, assigned, evaluation_mode
from ift_scale.train.job import Events, LiveJob
from ift_scale.train.launch.control import Control
from ift_scale.train.live import tokens as live_tokens
from ift_scale.train.live.tokens import LiveSet
from ift_scale.train.measurement.evaluator import (
    PeriodicEvaluator,
    Stopping,
)

ANSWERS = "live.npz"
"""`steps` (M,), `ids` (Q,) and `logprobs` (M, Q, C): the letters' log-probabilities of each
measurement, -inf after the last letter."""


class LiveEvaluator(PeriodicEvaluator):
    """The measurements of one arm; none if `job` is None. Rank 0 writes ANSWERS as well.

    `base`: answers of the base model, shared by all arms of a launch, because every arm starts
    from it.
    """

    NAME = "live"
    FILE = "live.jsonl"

    def __init__(
        self,
        job: LiveJob | None,
        config: LiveConfig,
        engine: TrainEngine,
        control: Control,
        num_steps: int,
        hidden_size: int,
        folder: Path | None,
        events: Events,
        base: dict[tuple[str, int], np.ndarray],
    ):
        rule = config.early_stopping
        stopping = Stopping(rule, rule.metric, rule.metric != "divergence") if rule else None
        every = job.every if job is not None else 0
        super().__init__(every, stopping, engine, control, num_steps, folder)
        self._job, self._events, self._base = job, events, base
        self._answers: list[np.ndarray] = []
        if job is None:
            return
        self._set = live_tokens.first(live_tokens.load(Path(job.questions)), job.num_questions)
        self._batches = self._collate(hidden_size)
        counts_N = self._set.tokens.supervised_counts
        self._positions = [
            np.arange(end - count, end)
            for end, count in zip(counts_N.cumsum(), counts_N, strict=True)
        ]
        self._letters_PC = torch.from_numpy(self._set.letters_PC.clip(min=0)).to(engine.device)
        # Rank 0 has the files; all ranks need the rows to agree on early stopping.
        rows: list[dict[str, Any]] = []
        if folder is not None:
            rows, self._answers = _read(folder, self.FILE, self._set.ids_Q)
        self.restore(control.gather(rows)[0])

    def _collate(self, hidden_size: int) -> list[MicroBatch]:
        """Returns this rank's micro-batches of the prompts."""
        engine, tokens = self._engine, self._set.tokens
        prompts = range(len(tokens.lengths))
        cap = engine.config.tokens_per_micro_batch
        unweighted = np.ones(len(prompts))
        return [
            collate(
                micro[engine.ranks.rank],
                tokens,
                unweighted,
                engine.device,
                engine.packed.shares_prefix,
                engine.packed.whole,
            )
            for micro in assigned(engine, tokens, prompts, cap, hidden_size)
        ]

    def measure(self, step: int) -> dict[str, Any]:
        """Asks the questions and returns the measures of the answers."""
        logprobs_QC = self._base_answers() if step == 0 else self._compute()
        self._answers.append(logprobs_QC)
        return measures(logprobs_QC, self._set)

    def record(self, row: Mapping[str, Any]) -> None:
        """Writes the answers of all measurements and shows the newest measures."""
        if self._folder is not None:
            np.savez(
                self._folder / ANSWERS,
                steps=np.array([earlier["step"] for earlier in self.rows]),
                ids=self._set.ids_Q,
                logprobs=np.stack(self._answers),
            )
        shown = {name: row[name] for name in ("step", "accuracy", "rank_correlation", "divergence")}
        self._events.emit("live", of=self._num_steps, over=self.should_stop, **shown)

    def _base_answers(self) -> np.ndarray:
        assert self._job is not None
        key = self._job.questions, self._job.num_questions
        if key not in self._base:
            self._base[key] = self._compute()
        return self._base[key]

    def _compute(self) -> np.ndarray:
        """Returns the letters' log-probabilities on every rank, (Q, C), float64."""
        with evaluation_mode(self._engine):
            parts = [self._logprobs(batch) for batch in self._batches]
        mine = (
            torch.cat(parts).double().cpu().numpy()
            if parts
            else np.empty((0, self._letters_PC.shape[1]))
        )
        positions = np.concatenate([self._positions_of(batch) for batch in self._batches])
        logprobs_PC = np.zeros(self._letters_PC.shape)
        # JSON keeps every bit of a float.
        for rank_positions, logprobs in self._control.gather((positions.tolist(), mine.tolist())):
            if rank_positions:
                logprobs_PC[rank_positions] = logprobs
        return self._set.option_logprobs(logprobs_PC)

    def _positions_of(self, batch: MicroBatch) -> np.ndarray:
        """Returns the indices into the P positions of the batch's rows, in order."""
        return np.concatenate(
            [np.empty(0, dtype=np.int64), *(self._positions[number] for number in batch.examples)]
        )

    def _logprobs(self, batch: MicroBatch) -> Tensor:
        """Returns the letters' log-probabilities of the batch's rows, (R, C).

        A rank without prompts computes one for the sake of the collectives and returns no rows.
        """
        activity.advance()
        logits_RV = self._engine.packed(batch, logits=True)
        if not batch.examples:
            return logits_RV.new_empty(0, self._letters_PC.shape[1])
        positions_R = torch.from_numpy(self._positions_of(batch)).to(self._letters_PC.device)
        letters_RC = self._letters_PC[positions_R]
        return logits_RV.gather(1, letters_RC) - logits_RV.logsumexp(1, keepdim=True)

    def counts(self) -> dict[str, float]:
        """Returns the counts for the arm's manifest."""
        if self._job is None:
            return {}
        return super().counts() | {"live_questions": self._job.num_questions}


def _read(
    folder: Path, file: str, ids_Q: np.ndarray
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Returns (rows, answers) of earlier measurements; removes those of other questions."""
    if not (folder / ANSWERS).is_file():
        return [], []
    rows = [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]
    with np.load(folder / ANSWERS, allow_pickle=False) as arrays:
        if np.array_equal(arrays["ids"], ids_Q):
            return rows, list(arrays["logprobs"])
    (folder / file).unlink()
    return [], []


def measures(logprobs_QC: np.ndarray, questions: LiveSet) -> dict[str, Any]:
    """Returns the measures of live.jsonl, as the analyse stage would compute them.

    accuracy; rank_correlation: mean over questions of the Pearson correlation of the options' dense
    ranks between base model (few-shot) and arm; divergence: mean of KL(base few-shot || arm) in
    nats; letter_mass: mean total probability of the letters; and for each grade of the probe, the
    number of its questions and their accuracy.
    """
    probs_QC = np.exp(logprobs_QC - logprobs_QC.max(axis=1, keepdims=True))
    probs_QC /= probs_QC.sum(axis=1, keepdims=True)
    right_Q = logprobs_QC.argmax(axis=1) == questions.answers_Q
    correlation_Q, divergence_Q = np.empty(len(right_Q)), np.empty(len(right_Q))
    for num_choices in np.unique(questions.num_choices_Q):
        chosen = questions.num_choices_Q == num_choices
        before, after = questions.base_QC[chosen, :num_choices], probs_QC[chosen, :num_choices]
        correlation_Q[chosen] = rank_pearson(before, after)
        divergence_Q[chosen] = kl_divergence(before, after)
    row: dict[str, Any] = {
        "accuracy": float(right_Q.mean()),
        "rank_correlation": float(correlation_Q.mean()),
        "divergence": float(divergence_Q.mean()),
        "letter_mass": float(np.exp(logprobs_QC).sum(axis=1).mean()),
        "questions": len(right_Q),
    }
    graded = [(name, right_Q[questions.grades_Q == index]) for index, name in enumerate(GRADES)]
    grades = {
        name: {"questions": len(right), "accuracy": float(right.mean())}
        for name, right in graded
        if len(right)
    }
    return row | ({"grades": grades} if grades else {})
