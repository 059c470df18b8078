"""The held-out questions that an arm is asked while it trains, as arrays in a file that every rank reads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ift_scale import artifacts
from ift_scale.train.data import TokenizedSet


@dataclass(frozen=True)
class LiveSet:
    """Q questions with up to C options each, in the order in which they are taken where not all are asked.

    `tokens`: the prompts, each followed by its right letter, the only supervised token: so the packed model's one wanted row of a
    question is the one that predicts the letter. `letters_QC`: token id of each option's letter, -1 behind the last. `answers_Q`:
    the right options. `base_QC`: the base model's few-shot option probabilities, 0 behind the last. `grades_Q`: index into GRADES,
    -1 where the probe has not graded. `ids_Q`: the questions' ids.
    """

    tokens: TokenizedSet
    letters_QC: np.ndarray
    answers_Q: np.ndarray
    base_QC: np.ndarray
    grades_Q: np.ndarray
    ids_Q: np.ndarray

    @property
    def num_choices(self) -> np.ndarray:
        return (self.letters_QC >= 0).sum(axis=1)


ARRAYS = ("letters_QC", "answers_Q", "base_QC", "grades_Q", "ids_Q")
_TOKENS = ("ids", "supervised", "offsets", "weights")


def save(questions: LiveSet, path: Path) -> None:
    parts = {name: getattr(questions, name) for name in ARRAYS} | {name: getattr(questions.tokens, name) for name in _TOKENS}
    with artifacts.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **parts)


def load(path: Path) -> LiveSet:
    with np.load(path) as arrays:
        tokens = TokenizedSet(**{name: arrays[name] for name in _TOKENS}, num_truncated=0)
        return LiveSet(tokens, **{name: arrays[name] for name in ARRAYS})
