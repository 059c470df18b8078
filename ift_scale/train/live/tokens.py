"""The questions of live knowledge as arrays, in a file that every rank reads."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ift_scale.io.files import atomic_path
from ift_scale.train.data.dataset import TokenizedSet


@dataclass(frozen=True)
class LiveSet:
    """Q questions of up to C options, in the order in which a subset is taken.

    `tokens`: N prompts, grouped by question. A question whose letters are one token each has one
    prompt, followed by the correct letter. Otherwise it has one prompt per option, followed by that
    option's tokens. The tokens after a prompt are supervised, so the supervised rows of the packed
    model are the P positions that predict them.
    `questions_N`: question of each prompt.
    `letters_PC`: token whose log-probability counts for each option at each position, or -1.
    `num_choices_Q`: number of options.
    `answers_Q`: index of the correct option.
    `base_QC`: the base model's few-shot option probabilities, 0 after the last option.
    `grades_Q`: index into GRADES, -1 if the probe did not grade the question.
    `ids_Q`: ids of the questions.
    """

    tokens: TokenizedSet
    questions_N: np.ndarray
    letters_PC: np.ndarray
    num_choices_Q: np.ndarray
    answers_Q: np.ndarray
    base_QC: np.ndarray
    grades_Q: np.ndarray
    ids_Q: np.ndarray

    @property
    def has_option(self) -> np.ndarray:
        return np.arange(self.letters_PC.shape[1]) < self.num_choices_Q[:, None]

    def option_logprobs(self, logprobs_PC: np.ndarray) -> np.ndarray:
        """Returns the options' scores (Q, C), sums of log-probabilities; -inf after the last."""
        questions_P = np.repeat(self.questions_N, self.tokens.supervised_counts)
        scores_QC = np.zeros((len(self.ids_Q), logprobs_PC.shape[1]))
        np.add.at(scores_QC, questions_P, np.where(self.letters_PC >= 0, logprobs_PC, 0.0))
        return np.where(self.has_option, scores_QC, -np.inf)

    def costs(self, costs_N: np.ndarray) -> np.ndarray:
        """Returns the cost of each question: the sum over its prompts."""
        return np.bincount(self.questions_N, costs_N, len(self.ids_Q))


FORMAT = 2
"""Version of the file's arrays."""
_BY_QUESTION = ("num_choices_Q", "answers_Q", "base_QC", "grades_Q", "ids_Q")
ARRAYS = ("questions_N", "letters_PC", *_BY_QUESTION)
_TOKENS = ("ids", "supervised", "offsets", "weights")


def save(questions: LiveSet, path: Path) -> None:
    parts = {name: getattr(questions, name) for name in ARRAYS} | {
        name: getattr(questions.tokens, name) for name in _TOKENS
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **parts)


def is_intact(path: Path) -> bool:
    """True if the file exists and the content of each array has its checksum (CRC-32)."""
    try:
        with zipfile.ZipFile(path) as arrays:
            names = {f"{name}.npy" for name in (*ARRAYS, *_TOKENS)}
            return arrays.testzip() is None and names <= set(arrays.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def load(path: Path) -> LiveSet:
    with np.load(path, allow_pickle=False) as arrays:
        tokens = TokenizedSet(**{name: arrays[name] for name in _TOKENS}, num_truncated=0)
        return LiveSet(tokens, **{name: arrays[name] for name in ARRAYS})


def first(questions: LiveSet, count: int) -> LiveSet:
    """Returns the first `count` questions."""
    tokens = questions.tokens
    num_prompts = int(np.searchsorted(questions.questions_N, count))
    end = tokens.offsets[num_prompts]
    num_positions = int(tokens.supervised_counts[:num_prompts].sum())
    kept = TokenizedSet(
        tokens.ids[:end],
        tokens.supervised[:end],
        tokens.offsets[: num_prompts + 1],
        tokens.weights[:num_prompts],
        num_truncated=0,
    )
    by_question = {name: getattr(questions, name)[:count] for name in _BY_QUESTION}
    return LiveSet(
        kept,
        questions.questions_N[:num_prompts],
        questions.letters_PC[:num_positions],
        **by_question,
    )
