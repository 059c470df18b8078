"""The validation loss of an arm: the exact loss on all validation examples, on the training ranks.

It is the loss that training minimises (`train.loss_average`, example weights), over all validation
examples as one step: the mean over their supervised tokens, or over the examples of each one's own
mean. Every rank sums its share of the rows in float64, so the result does not depend on the number
of ranks, on packing or on the token cap, except for the rounding of the forward pass. The
load-balancing loss of a mixture of experts is not part of it.

Shapes: R rows of a micro-batch.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ift_scale.config.train import ValidationConfig
from ift_scale.ranks import activity
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.collate import collate
from ift_scale.train.engine.best import BestWeights
from ift_scale.train.engine.deepspeed import TrainEngine, assigned, evaluation_mode
from ift_scale.train.job import Events, ValidationJob
from ift_scale.train.launch.control import Control
from ift_scale.train.measurement.evaluator import (
    PeriodicEvaluator,
    Stopping,
)

LOSS = "validation_loss"
_GROUP = 1024
"""Examples that are assigned to ranks together: more would take long to pack."""


class ValidationEvaluator(PeriodicEvaluator):
    """The validation of one arm; none if `job` is None.

    `cap`: about the largest number of tokens in a micro-batch of the arm's steps, so that a
    measurement needs no more memory than training. `base`: losses of the base model, shared by all
    arms of a launch. `best`: keeps the best weights if `train.validation.keep_best` is set.
    """

    NAME = "validation"
    FILE = "validation.jsonl"
    LOGGED = (LOSS,)

    def __init__(
        self,
        job: ValidationJob | None,
        config: ValidationConfig,
        engine: TrainEngine,
        control: Control,
        num_steps: int,
        hidden_size: int,
        cap: int,
        folder: Path | None,
        events: Events,
        base: dict[str, float],
        best: BestWeights | None,
    ):
        rule = config.early_stopping
        stopping = Stopping(rule, LOSS, rises=False) if rule else None
        every = job.every if job is not None else 0
        super().__init__(every, stopping, engine, control, num_steps, folder)
        self._job, self._events, self._base, self._best = job, events, base, best
        if job is None:
            return
        self._tokens = dataset.load(Path(job.tokens))
        self._examples = job.examples(self._tokens)
        self._groups = [
            assigned(engine, self._tokens, group.tolist(), cap, hidden_size)
            for group in np.array_split(self._examples, math.ceil(len(self._examples) / _GROUP))
        ]
        self._scales = packing.loss_scales(
            self._examples.tolist(),
            self._tokens.supervised_counts,
            self._tokens.weights,
            engine.config.loss_average,
        )
        # Rank 0 has the file; all ranks need the rows to agree on early stopping.
        self.restore(control.gather(_read(folder, self.FILE, job.digest) if folder else None)[0])

    def measure(self, step: int) -> dict[str, Any]:
        """Returns the loss in nats with the counts that it is a mean over; null if non-finite."""
        assert self._job is not None
        if step == 0:
            # Every arm starts from the base model.
            if self._job.digest not in self._base:
                self._base[self._job.digest] = self._loss()
            loss = self._base[self._job.digest]
        else:
            loss = self._loss()
        return {
            LOSS: loss if math.isfinite(loss) else None,
            "examples": len(self._examples),
            "supervised_tokens": int(self._tokens.supervised_counts[self._examples].sum()),
            "digest": self._job.digest,
        }

    def _loss(self) -> float:
        """Returns the exact loss on every rank."""
        engine = self._engine
        total = torch.zeros((), dtype=torch.float64, device=engine.device)
        with evaluation_mode(engine):
            for micro in (micro for group in self._groups for micro in group):
                activity.advance()
                examples = micro[engine.ranks.rank]
                batch = collate(
                    examples,
                    self._tokens,
                    self._scales,
                    engine.device,
                    engine.packed.shares_prefix,
                    engine.packed.whole,
                )
                # The micro-batch's own loss is float32; its rows are summed again in float64.
                _, losses_R = engine.packed(batch)
                # A rank without examples computes one for the sake of the collectives.
                if examples:
                    counts = self._tokens.supervised_counts[examples]
                    scales_R = torch.from_numpy(np.repeat(self._scales[examples], counts))
                    total += losses_R.double() @ scales_R.to(engine.device)
        # In the order of the ranks, so that all get the same sum.
        return sum(self._control.gather(float(total)))

    def record(self, row: Mapping[str, Any]) -> None:
        """Shows the newest loss and keeps the weights if they are the best so far."""
        best = self._best
        # An arm is a trained model: its base model is not a candidate.
        if best is not None and row["step"] > 0 and row[LOSS] is not None:
            best.offer(row["step"], row[LOSS])
        self._events.emit(
            "validation",
            step=row["step"],
            of=self._num_steps,
            loss=row[LOSS],
            best=best is not None and best.step == row["step"],
            over=self.should_stop,
        )

    def times(self) -> dict[str, float]:
        """Returns the seconds of the measurements, and of keeping the best weights."""
        if self._job is None:
            return {}
        kept = {} if self._best is None else {"keep_best": self._best.seconds}
        return super().times() | kept

    def counts(self) -> dict[str, float]:
        """Returns the counts for the arm's manifest."""
        if self._job is None:
            return {}
        counts = super().counts() | {"validation_examples": len(self._examples)}
        if self._best is not None and self._best.step is not None:
            counts["best_step"] = self._best.step
        return counts


def _read(folder: Path, file: str, digest: str) -> list[dict[str, Any]]:
    """Returns the rows of earlier measurements; removes those of other examples."""
    path = folder / file
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if all(row["digest"] == digest for row in rows):
        return rows
    path.unlink()
    return []
