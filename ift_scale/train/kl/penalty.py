"""The divergence from the base model during the training of one arm.

The base's distributions come from a cache, which the training ranks fill before the first step,
when the engine's weights are still the base's, or from a frozen copy at every step.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ift_scale.io.manifests import file_digest
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.collate import collate
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import zero_config
from ift_scale.train.engine.deepspeed import TrainEngine, assigned, evaluation_mode
from ift_scale.train.job import ArmJob, Job
from ift_scale.train.kl import store
from ift_scale.train.kl.parts import StepPenalty, StoredTargets, TextStep
from ift_scale.train.launch.control import Control

_GROUP = 1024
"""Examples that are assigned to ranks together: more would take long to pack."""


class KLPenalty:
    """Plans the text of every step when created; `prepare` must be called before a checkpoint is
    loaded. Every rank must make the same calls."""

    def __init__(
        self, job: Job, arm: ArmJob, tokens: TokenizedSet, num_steps: int, world_size: int
    ):
        assert arm.kl is not None
        self._job, self._arm, self._kl, self._config = job, arm, arm.kl, job.train.kl
        self._tokens = tokens
        self._targets: StoredTargets | None = None
        self._text: TokenizedSet | None = None
        self._text_targets: StoredTargets | None = None
        self._text_steps: list[packing.Step] = []
        text = self._config.text
        if text is not None and arm.kl.text is not None:
            self._text = dataset.load(Path(arm.kl.text))
            layout = job.path.layout if job.train.packing else "single"
            lengths = self._text.computed_lengths
            cap = job.train.tokens_per_micro_batch
            self._text_steps = [
                packing.assign_to_ranks(numbers, lengths, world_size, cap, job.hidden_size, layout)
                for numbers in text_examples(len(lengths), text.batch_size, num_steps, arm.arm.seed)
            ]

    @property
    def num_micro_batches(self) -> int:
        """The largest number of micro-batches of text in a step."""
        return max(map(len, self._text_steps), default=0)

    def prepare(self, engine: TrainEngine, control: Control) -> None:
        """Map the cached distributions, computed now if there are none for this base model."""
        if self._config.base == "copy":
            return
        if self._config.weight:
            self._targets = self._cached(Path(self._arm.tokens), self._tokens, engine, control)
        if self._text is not None and self._kl.text is not None:
            self._text_targets = self._cached(Path(self._kl.text), self._text, engine, control)

    def of(self, number: int) -> StepPenalty:
        """Returns the divergence's part of step `number`, from 0."""
        text = None
        if self._text is not None and self._config.text is not None:
            weight = self._config.text.weight
            text = TextStep(self._text_steps[number], self._text, weight, self._text_targets)
        return StepPenalty(self._config.weight, self._targets, text)

    def counts(self) -> dict[str, float]:
        """Returns the manifest's count: the mean probability outside of the cached top k."""
        found = {"kl_rest": self._targets, "kl_text_rest": self._text_targets}
        return {n: float(np.exp(t.rest).mean()) for n, t in found.items() if t is not None}

    def _cached(
        self, path: Path, tokens: TokenizedSet, engine: TrainEngine, control: Control
    ) -> StoredTargets:
        dtype = zero_config.precision_of(engine.config, engine.device)
        identity = {
            "version": store.VERSION,
            "base model": self._kl.base,
            "tokenizer": self._kl.tokenizer,
            "tokens": file_digest(path / dataset.COUNTS),
            "top_k": self._config.top_k,
            "precision": str(dtype),
        }
        folder = store.folder_of(Path(self._kl.cache), identity)
        is_rank_zero = engine.ranks.is_rank_zero
        problem, temporary = control.gather(
            [store.problem_of(folder, identity) if is_rank_zero else "", self._temporary(folder)]
        )[0]
        if problem is not None:
            if problem != "missing" and is_rank_zero:
                print(f"{folder}: {problem}; the base's distributions are computed again")
            self._fill(Path(temporary), tokens, engine, control)
            if is_rank_zero:
                store.seal(Path(temporary), identity)
                shutil.rmtree(folder, ignore_errors=True)
                Path(temporary).replace(folder)
            control.barrier()
        return store.load(folder, tokens)

    def _temporary(self, folder: Path) -> str:
        return str(folder.with_name(f".{folder.name}.{os.getpid()}.incomplete"))

    def _fill(
        self, folder: Path, tokens: TokenizedSet, engine: TrainEngine, control: Control
    ) -> None:
        """Compute the distributions of all rows with the engine's weights, and write them."""
        if engine.ranks.is_rank_zero:
            shutil.rmtree(folder, ignore_errors=True)
            k = min(self._config.top_k, engine.packed.vocabulary)
            store.create(folder, int(tokens.supervised_counts.sum()), k)
        control.barrier()
        targets = store.load(folder, tokens, "r+")
        every, cap = np.arange(len(tokens.lengths)), self._job.train.tokens_per_micro_batch
        scales = np.zeros(len(every))
        with evaluation_mode(engine):
            for group in np.array_split(every, -(-len(every) // _GROUP)):
                for micro in assigned(engine, tokens, group.tolist(), cap, self._job.hidden_size):
                    self._write(micro[engine.ranks.rank], targets, scales, engine)
        for array in (targets.ids, targets.logprobs, targets.rest):
            array.flush()  # type: ignore[attr-defined]
        control.barrier()

    def _write(
        self,
        examples: Sequence[int],
        targets: StoredTargets,
        scales: np.ndarray,
        engine: TrainEngine,
    ) -> None:
        """Write the rows of one micro-batch. A rank without examples computes one for the sake of
        the collectives."""
        packed = engine.packed
        batch = collate(
            examples, targets.tokens, scales, engine.device, packed.shares_prefix, packed.whole
        )
        top = packed(batch, top_k=self._config.top_k)
        if examples:
            rows = targets.rows_of(examples)
            targets.ids[rows] = top.ids_RK.cpu().numpy()
            targets.logprobs[rows] = top.logprobs_RK.float().cpu().numpy()
            targets.rest[rows] = top.rest_R.float().cpu().numpy()


def text_examples(num: int, batch_size: int, num_steps: int, seed: int) -> list[list[int]]:
    """Returns the numbers of the text examples in every step: passes in random order, end to end.

    A step has at most all `num` examples, each once unless a pass ends within it.
    """
    size = min(batch_size, num)
    passes = -(-size * num_steps // num)
    order = np.concatenate(
        [
            np.random.Generator(np.random.Philox([seed, number, 1])).permutation(num)
            for number in range(passes)
        ]
    )
    return [
        list(dict.fromkeys(order[step * size : (step + 1) * size].tolist()))
        for step in range(num_steps)
    ]


def penalty_of(
    job: Job, arm: ArmJob, tokens: TokenizedSet, num_steps: int, world_size: int
) -> KLPenalty | None:
    """Returns the arm's penalty, None if `train.kl` is off."""
    return KLPenalty(job, arm, tokens, num_steps, world_size) if arm.kl is not None else None
