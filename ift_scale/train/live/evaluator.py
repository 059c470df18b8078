"""Live knowledge: an arm's answers to its own held-out questions, measured on the training ranks.

Every rank computes its share of the packed prompts with the model's own forward pass, without
gradients, and reads the log-probabilities of the letters. From all of them each rank computes the
same measures. Training is not affected: no gradient, random number or optimizer state changes, so
an arm's weights are bit-identical with and without live knowledge.

Shapes: Q questions of up to C options, P scored positions, M measurements, R rows of a micro-batch.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ift_scale.config.train import LiveConfig
from ift_scale.records import GRADES
from ift_scale.scoring.agreement import kl_divergence, rank_pearson
from ift_scale.train.data import packing
from ift_scale.train.data.collate import collate
from ift_scale.train.data.micro_batch import MicroBatch
from ift_scale.train.engine.deepspeed import TrainEngine
from ift_scale.train.job import Events, LiveJob
from ift_scale.train.launch.control import Control
from ift_scale.train.live import schedule
from ift_scale.train.live import tokens as live_tokens
from ift_scale.train.live.tokens import LiveSet

FILE = "live.jsonl"
"""One row per measurement. `seconds`: its duration; `share`: all measurements' part of the arm's
time so far."""
ANSWERS = "live.npz"
"""`steps` (M,), `ids` (Q,) and `logprobs` (M, Q, C): the letters' log-probabilities of each
measurement, -inf after the last letter."""


class LiveEvaluator:
    """The measurements of one arm; none if `job` is None.

    `folder`: the arm's folder on rank 0, which writes FILE and ANSWERS; None on other ranks. A
    resumed arm continues from these files. `base`: answers of the base model, shared by all arms of
    a launch, because every arm starts from it.
    """

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
        self._job, self._config, self._num_steps = job, config, num_steps
        self._engine, self._control = engine, control
        self._folder, self._events, self._base = folder, events, base
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.should_stop = False
        """True once early stopping has ended the arm."""
        self._started = time.monotonic()
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
        self._restore()

    def _collate(self, hidden_size: int) -> list[MicroBatch]:
        """Returns this rank's micro-batches of the prompts."""
        engine, tokens = self._engine, self._set.tokens
        # A prompt over the cap is computed nevertheless: without gradients it needs much less
        # memory than an example of the same length.
        cap = max(engine.config.tokens_per_micro_batch, int(tokens.computed_lengths.max()))
        num_prompts = len(tokens.lengths)
        assigned = packing.assign_to_ranks(
            range(num_prompts),
            tokens.computed_lengths,
            engine.ranks.world_size,
            cap,
            hidden_size,
            engine.packed.path.layout,
        )
        unweighted = np.ones(num_prompts)
        return [
            collate(
                micro[engine.ranks.rank],
                tokens,
                unweighted,
                engine.device,
                engine.packed.shares_prefix,
                engine.packed.whole,
            )
            for micro in assigned
        ]

    def _restore(self) -> None:
        """Restore the measurements made before an interruption, if of the same questions."""
        # Rank 0 has the files; all ranks need the rows to agree on early stopping.
        mine = _read(self._folder, self._set.ids_Q) if self._folder else None
        self.rows, self._answers = self._control.gather(mine)[0]
        if self.rows:
            self.seconds = sum(row["seconds"] for row in self.rows)
            self._started -= self.seconds / self.rows[-1]["share"]
            self.should_stop = self._stops_early()

    def after(self, step: int) -> float:
        """Measure if due after `step` steps and return the seconds it took.

        Every rank must call this; `should_stop` is the same on all. A measurement made before an
        interruption is not repeated.
        """
        if self._job is None or not schedule.due(step, self._job.every, self._num_steps):
            return 0.0
        if any(row["step"] == step for row in self.rows):
            return 0.0
        if self._engine.device.type == "cuda":
            # What is still queued belongs to the last step's time.
            torch.cuda.synchronize(self._engine.device)
        started = time.monotonic()
        logprobs_QC = self._base_answers() if step == 0 else self._compute()
        seconds = time.monotonic() - started
        self.seconds += seconds
        row = {"step": step} | measures(logprobs_QC, self._set)
        row |= {"seconds": seconds, "share": self.seconds / (time.monotonic() - self._started)}
        self._add(row, logprobs_QC)
        return seconds

    def _add(self, row: dict[str, Any], logprobs_QC: np.ndarray) -> None:
        self.rows.append(row)
        self._answers.append(logprobs_QC)
        self.should_stop = self._stops_early()
        if self._folder is not None:
            with (self._folder / FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            steps = np.array([earlier["step"] for earlier in self.rows])
            np.savez(
                self._folder / ANSWERS,
                steps=steps,
                ids=self._set.ids_Q,
                logprobs=np.stack(self._answers),
            )
        shown = {name: row[name] for name in ("step", "accuracy", "rank_correlation", "divergence")}
        self._events.emit("live", of=self._num_steps, over=self.should_stop, **shown)

    def _stops_early(self) -> bool:
        """True if the newest measurement ends the arm; False after its last step."""
        stopping = self._config.early_stopping
        if stopping is None:
            return False
        values = [row[stopping.metric] for row in self.rows]
        since = schedule.since_best(
            values, stopping.metric != "divergence", stopping.least_improvement
        )
        # Rank 0 decides, because different machines may round differently.
        stops = self._control.gather(since >= stopping.patience)[0]
        return stops and self.rows[-1]["step"] < self._num_steps

    def _base_answers(self) -> np.ndarray:
        assert self._job is not None
        key = self._job.questions, self._job.num_questions
        if key not in self._base:
            self._base[key] = self._compute()
        return self._base[key]

    def _compute(self) -> np.ndarray:
        """Returns the letters' log-probabilities on every rank, (Q, C), float64."""
        packed = self._engine.packed
        packed.eval()
        try:
            parts = [self._logprobs(batch) for batch in self._batches]
        finally:
            packed.train()
        if self._engine.config.zero_stage == 3:
            # A forward pass without a backward pass leaves weights gathered and prefetched.
            self._engine.deepspeed.optimizer.empty_partition_cache()
        mine = (
            torch.cat(parts).double().cpu().numpy()
            if parts
            else np.empty((0, self._letters_PC.shape[1]))
        )
        positions = np.concatenate([self._positions_of(batch) for batch in self._batches])
        logprobs_PC = np.zeros(self._letters_PC.shape)
        for rank_positions, logprobs in self._control.gather((positions, mine)):
            logprobs_PC[rank_positions] = logprobs
        return self._set.option_logprobs(logprobs_PC)

    def _positions_of(self, batch: MicroBatch) -> np.ndarray:
        """Returns the indices into the P positions of the batch's rows, in order."""
        return np.concatenate(
            [np.empty(0, dtype=np.int64), *(self._positions[number] for number in batch.examples)]
        )

    @torch.no_grad()
    def _logprobs(self, batch: MicroBatch) -> Tensor:
        """Returns the letters' log-probabilities of the batch's rows, (R, C).

        A rank without prompts computes one for the sake of the collectives and returns no rows.
        """
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
        counts: dict[str, float] = {
            "live_measurements": len(self.rows),
            "live_questions": self._job.num_questions,
            "live_every": self._job.every,
        }
        if self._config.early_stopping is not None:
            counts["stopped_early"] = int(self.should_stop)
        return counts


def _read(folder: Path, ids_Q: np.ndarray) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Returns (rows, answers) of earlier measurements; removes those of other questions."""
    if not (folder / ANSWERS).is_file():
        return [], []
    rows = [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]
    with np.load(folder / ANSWERS) as arrays:
        if np.array_equal(arrays["ids"], ids_Q):
            return rows, list(arrays["logprobs"])
    (folder / FILE).unlink()
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
