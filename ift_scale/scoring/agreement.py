"""Measures how far two models' option distributions agree, question by question.

Arrays are (Q, C): Q questions with C options. Pure numpy, because the training ranks import this
and importing scipy.stats takes most of a second.
"""

import numpy as np


def dense_ranks(probs_QC: np.ndarray) -> np.ndarray:
    """Ranks options by falling probability, from 1; equal ones share a rank. Shape (Q, C)."""
    ordered = -np.sort(-probs_QC, axis=1)
    new = np.ones(ordered.shape, dtype=int)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    # How many options are likelier than each.
    place_QC = (probs_QC[:, :, None] < ordered[:, None, :]).sum(axis=2)
    return np.take_along_axis(new.cumsum(axis=1), place_QC, axis=1)


def rank_pearson(before_QC: np.ndarray, after_QC: np.ndarray) -> np.ndarray:
    """Pearson correlation of the options' ranks per question, shape (Q,).

    0 if undefined, as in the paper.
    """
    a, b = (
        ranks - ranks.mean(axis=1, keepdims=True)
        for ranks in (dense_ranks(before_QC), dense_ranks(after_QC))
    )
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.where(scale > 0, (a * b).sum(axis=1) / np.where(scale > 0, scale, 1), 0.0)


def kl_divergence(before_QC: np.ndarray, after_QC: np.ndarray) -> np.ndarray:
    """KL(before || after) of the option distributions per question, in nats, shape (Q,).

    An option of probability 0 in `before` contributes 0. An option of probability 0 in `after` only
    makes the divergence infinite.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = before_QC * (np.log(before_QC) - np.log(after_QC))
    return np.where(before_QC > 0, terms, 0.0).sum(axis=1)
