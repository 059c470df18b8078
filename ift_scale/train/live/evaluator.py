"""Live knowledge: what an arm answers to its own held-out questions while it trains, asked on the training ranks.

Every rank takes its share of the packed prompts through the model's own forward, without gradient, and reads the letters'
log-probabilities; from all of them each rank computes the same measures. Nothing of the training is touched: no gradient, no random
number, no optimizer state, so an arm's weights are bit for bit those of one that is never asked.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ift_scale.config import LiveConfig
from ift_scale.records import GRADES
from ift_scale.scoring.agreement import kl_divergence, rank_pearson
from ift_scale.train.data import packing
from ift_scale.train.data.collate import MicroBatch, collate
from ift_scale.train.engine.deepspeed import Engine
from ift_scale.train.job import Events, LiveJob
from ift_scale.train.launch.control import Control
from ift_scale.train.live import schedule
from ift_scale.train.live import tokens as live_tokens
from ift_scale.train.live.tokens import LiveSet

FILE = "live.jsonl"
"""A row a measurement; `seconds` is what it took, `share` the part of the arm's time that all so far took."""
ANSWERS = "live.npz"
"""`steps` (M,), `ids` (Q,) and `logprobs` (M, Q, C): the letters' log-probabilities of each measurement, -inf behind the last."""


class Live:
    """The measurements of one arm. `job` None: there are none. `folder`: rank 0 names it, which writes.

    FILE and ANSWERS there are all of its state: a resumed arm that finds them goes on from them. `base` holds what the base model
    answers, by questions, for all arms of a launch: every arm begins there.
    """

    def __init__(
        self,
        job: LiveJob | None,
        config: LiveConfig,
        engine: Engine,
        control: Control,
        num_steps: int,
        hidden_size: int,
        folder: Path | None,
        events: Events,
        base: dict[tuple[str, int], np.ndarray],
    ):
        self._job, self._config, self._engine, self._control, self._num_steps = (
            job,
            config,
            engine,
            control,
            num_steps,
        )
        self._folder, self._events, self._base = folder, events, base
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.over = False
        """Whether early stopping has ended the arm."""
        self._started = time.monotonic()
        self._answers: list[np.ndarray] = []
        if job is None:
            return
        self._set = live_tokens.first(live_tokens.load(Path(job.questions)), job.num_questions)
        tokens = self._set.tokens
        # A prompt over the cap is computed all the same: without gradients it takes a fraction of an example's memory.
        cap = max(engine.config.tokens_per_micro_batch, int(tokens.computed_lengths.max()))
        num_prompts = len(tokens.lengths)
        dealt = packing.deal(
            range(num_prompts), tokens.computed_lengths, engine.ranks.world_size, cap, hidden_size
        )
        unweighted = np.ones(num_prompts)
        self._batches = [
            collate(micro[engine.ranks.rank], tokens, unweighted, engine.device) for micro in dealt
        ]
        ends_N = tokens.supervised_counts.cumsum()
        self._positions = [
            np.arange(end - count, end)
            for end, count in zip(ends_N, tokens.supervised_counts, strict=True)
        ]
        self._letters_PC = torch.from_numpy(self._set.letters_PC.clip(min=0)).to(engine.device)
        self._go_on()

    def _go_on(self) -> None:
        """Take up what was measured before the arm was interrupted, where it was of the same questions."""
        self.rows, self._answers = self._control.gather(
            _read(self._folder, self._set.ids_Q) if self._folder else None
        )[0]
        if self.rows:
            self.seconds = sum(row["seconds"] for row in self.rows)
            self._started -= self.seconds / self.rows[-1]["share"]
            self.over = self._ends()

    def after(self, step: int) -> float:
        """Measure where it is due after `step` steps; the seconds that took. Every rank calls it, and `over` is the same on all.

        What was measured already, before an interruption, is not measured again.
        """
        if self._job is None or not schedule.due(step, self._job.every, self._num_steps):
            return 0.0
        if any(row["step"] == step for row in self.rows):
            return 0.0
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize(
                self._engine.device
            )  # what is still queued is the last step's time
        begun = time.monotonic()
        logprobs_QC = self._base_answers() if step == 0 else self._ask()
        seconds = time.monotonic() - begun
        self.seconds += seconds
        row = {"step": step} | measures(logprobs_QC, self._set)
        row |= {"seconds": seconds, "share": self.seconds / (time.monotonic() - self._started)}
        self._add(row, logprobs_QC)
        return seconds

    def _add(self, row: dict[str, Any], logprobs_QC: np.ndarray) -> None:
        self.rows.append(row)
        self._answers.append(logprobs_QC)
        self.over = self._ends()
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
        self._events.emit("live", of=self._num_steps, over=self.over, **shown)

    def _ends(self) -> bool:
        """Whether the newest measurement ends the arm; there is nothing left to end after its last step."""
        stopping = self._config.early_stopping
        if stopping is None:
            return False
        values = [row[stopping.metric] for row in self.rows]
        since = schedule.since_best(
            values, stopping.metric != "divergence", stopping.least_improvement
        )
        # Rank 0's word counts: machines of two kinds may round differently.
        return (
            self._control.gather(since >= stopping.patience)[0]
            and self.rows[-1]["step"] < self._num_steps
        )

    def _base_answers(self) -> np.ndarray:
        assert self._job is not None
        key = self._job.questions, self._job.num_questions
        if key not in self._base:
            self._base[key] = self._ask()
        return self._base[key]

    def _ask(self) -> np.ndarray:
        """The letters' log-probabilities, (Q, C) float64, minus infinity behind the last; on every rank."""
        packed = self._engine.packed
        packed.eval()
        try:
            parts = [self._logprobs(batch) for batch in self._batches]
        finally:
            packed.train()
        if self._engine.config.zero_stage == 3:
            # A forward pass without a backward one leaves weights gathered and prefetched.
            self._engine.deepspeed.optimizer.empty_partition_cache()
        mine = (
            torch.cat(parts).double().cpu().numpy()
            if parts
            else np.empty((0, self._letters_PC.shape[1]))
        )
        positions = np.concatenate([self._positions_of(batch) for batch in self._batches])
        logprobs_PC = np.zeros(self._letters_PC.shape)
        for places, logprobs in self._control.gather((positions, mine)):
            logprobs_PC[places] = logprobs
        return self._set.option_logprobs(logprobs_PC)

    def _positions_of(self, batch: MicroBatch) -> np.ndarray:
        """Which of the P positions the batch's rows are, in their order."""
        return np.concatenate(
            [np.empty(0, dtype=np.int64), *(self._positions[number] for number in batch.examples)]
        )

    @torch.no_grad()
    def _logprobs(self, batch: MicroBatch) -> Tensor:
        """(R, C) for the batch's prompts; a rank without one computes, for the collectives in it, and has no row."""
        logits_RV = self._engine.packed(batch, logits=True)
        if not batch.examples:
            return logits_RV.new_empty(0, self._letters_PC.shape[1])
        letters_RC = self._letters_PC[
            torch.from_numpy(self._positions_of(batch)).to(self._letters_PC.device)
        ]
        return logits_RV.gather(1, letters_RC) - logits_RV.logsumexp(1, keepdim=True)

    def counts(self) -> dict[str, float]:
        """For the arm's manifest."""
        if self._job is None:
            return {}
        counts: dict[str, float] = {
            "live_measurements": len(self.rows),
            "live_questions": self._job.num_questions,
            "live_every": self._job.every,
        }
        return counts | (
            {} if self._config.early_stopping is None else {"stopped_early": int(self.over)}
        )


def _read(folder: Path, ids_Q: np.ndarray) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """(rows, answers) of the measurements so far; they are removed where they are of other questions than `ids_Q`."""
    if not (folder / ANSWERS).is_file():
        return [], []
    rows = [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]
    with np.load(folder / ANSWERS) as arrays:
        if np.array_equal(arrays["ids"], ids_Q):
            return rows, list(arrays["logprobs"])
    (folder / FILE).unlink()
    return [], []


def measures(logprobs_QC: np.ndarray, questions: LiveSet) -> dict[str, Any]:
    """What the letters' log-probabilities say, as the analyse stage would of the same answers.

    accuracy; rank_correlation, the mean over questions of the Pearson correlation of the options' dense ranks, base model few-shot
    and arm; divergence, the mean of KL(base few-shot || arm) in nats; letter_mass, the probability that the letters hold together;
    and of each grade that the probe has given, its questions and their accuracy.
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
    found: dict[str, Any] = {
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
    return found | ({"grades": grades} if grades else {})
