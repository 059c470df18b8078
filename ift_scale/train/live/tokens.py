"""The held-out questions that an arm is asked while it trains, as arrays in a file that every rank reads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ift_scale.io.files import atomic_path
from ift_scale.train.data.dataset import TokenizedSet


@dataclass(frozen=True)
class LiveSet:
    """Q questions with up to C options each, in the order in which they are taken where not all are asked.

    `tokens`: N prompts, those of each question after those of the one before. A question whose letters are one token each has one
    prompt, followed by its right letter; one whose letters take several tokens has a prompt for each option, followed by that
    option's tokens. What follows a prompt is supervised, so the packed model's wanted rows are the P positions that predict it.
    `questions_N`: the question of each prompt. `letters_PC`: at each of the P positions, the token whose log-probability counts in
    each option's score, -1 for none. `num_choices_Q`: the options of each question. `answers_Q`: the right options. `base_QC`: the
    base model's few-shot option probabilities, 0 after the last. `grades_Q`: index into GRADES, -1 if the probe has not graded.
    `ids_Q`: the questions' ids.
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
        """Each option's score from what the P positions give its tokens: the sum over its tokens, minus infinity after the last."""
        questions_P = np.repeat(self.questions_N, self.tokens.supervised_counts)
        found_QC = np.zeros((len(self.ids_Q), logprobs_PC.shape[1]))
        np.add.at(found_QC, questions_P, np.where(self.letters_PC >= 0, logprobs_PC, 0.0))
        return np.where(self.has_option, found_QC, -np.inf)

    def costs(self, costs_N: np.ndarray) -> np.ndarray:
        """What each question's prompts cost together."""
        return np.bincount(self.questions_N, costs_N, len(self.ids_Q))


FORMAT = 2
"""Of the file; another number where its arrays change."""
_BY_QUESTION = ("num_choices_Q", "answers_Q", "base_QC", "grades_Q", "ids_Q")
ARRAYS = ("questions_N", "letters_PC", *_BY_QUESTION)
_TOKENS = ("ids", "supervised", "offsets", "weights")


def save(questions: LiveSet, path: Path) -> None:
    parts = {name: getattr(questions, name) for name in ARRAYS} | {
        name: getattr(questions.tokens, name) for name in _TOKENS
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **parts)


def load(path: Path) -> LiveSet:
    with np.load(path) as arrays:
        tokens = TokenizedSet(**{name: arrays[name] for name in _TOKENS}, num_truncated=0)
        return LiveSet(tokens, **{name: arrays[name] for name in ARRAYS})


def first(questions: LiveSet, count: int) -> LiveSet:
    """The first `count` questions."""
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
