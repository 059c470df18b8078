"""Linear probes: multinomial logistic regression from a layer's states to the right letter.

Notation: N questions, H features, C letters. Pure functions.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)
"""Strengths of the L2 penalty to choose from, strongest first."""
HELD_OUT = 4
"""One of so many fit questions is held out to choose the penalty and the layer."""
_MOST_STEPS = 200


@dataclass(frozen=True)
class Labels:
    """The letter to predict for each question, and its number of options, both of shape (N,).

    `num_letters`: the most options of any question that a probe is fitted on or applied to.
    """

    letter_N: np.ndarray
    num_choices_N: np.ndarray
    num_letters: int

    def of(self, rows: slice | np.ndarray) -> "Labels":
        return Labels(self.letter_N[rows], self.num_choices_N[rows], self.num_letters)

    def masked(self, logits_NC: np.ndarray) -> np.ndarray:
        """Returns the logits, -inf for letters that a question does not have."""
        excluded_NC = np.arange(self.num_letters) >= self.num_choices_N[:, None]
        return np.where(excluded_NC, -np.inf, logits_NC)


@dataclass(frozen=True)
class LinearProbe:
    """Weights on standardised states; `weight_HC`'s last row is the bias."""

    mean_H: np.ndarray
    scale_H: np.ndarray
    weight_HC: np.ndarray

    def logits(self, states_NH: np.ndarray) -> np.ndarray:
        return _with_one((states_NH - self.mean_H) / self.scale_H) @ self.weight_HC

    def right(self, states_NH: np.ndarray, labels: Labels) -> np.ndarray:
        """Returns a mask (N,): the question's letter ranks first among those that it has."""
        return np.asarray(labels.masked(self.logits(states_NH)).argmax(1) == labels.letter_N)

    def log_loss(self, states_NH: np.ndarray, labels: Labels) -> float:
        """Returns the mean cross-entropy in nats."""
        logprobs_NC = special.log_softmax(labels.masked(self.logits(states_NH)), axis=1)
        return -float(logprobs_NC[np.arange(len(states_NH)), labels.letter_N].mean())


def fit(
    states_NH: np.ndarray, labels: Labels, penalty: float, start: LinearProbe | None = None
) -> LinearProbe:
    """Minimises the mean cross-entropy + penalty / 2 |W|^2 by L-BFGS; the bias is not penalised.

    States are standardised by their mean and standard deviation over the N questions. `start`: a
    probe of the same states, whose weights are the first guess.
    """
    states_NH = states_NH.astype(np.float64)
    mean_H, scale_H = states_NH.mean(0), states_NH.std(0)
    scale_H[scale_H == 0] = 1.0
    x_NH = (states_NH - mean_H) / scale_H
    # With more features than questions, the solution is in the span of the questions' states.
    basis_HN = np.linalg.qr(x_NH.T)[0] if len(x_NH) < x_NH.shape[1] else None
    x_NF = _with_one(x_NH if basis_HN is None else x_NH @ basis_HN)
    rows_N, shape = np.arange(len(x_NF)), (x_NF.shape[1], labels.num_letters)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight_FC = flat.reshape(shape)
        logits_NC = labels.masked(x_NF @ weight_FC)
        error_NC = special.softmax(logits_NC, axis=1)
        chosen_N = logits_NC[rows_N, labels.letter_N] - special.logsumexp(logits_NC, axis=1)
        error_NC[rows_N, labels.letter_N] -= 1
        penalised_FC = weight_FC * (np.arange(shape[0]) < shape[0] - 1)[:, None]
        value = -chosen_N.mean() + penalty / 2 * (penalised_FC**2).sum()
        return float(value), (x_NF.T @ error_NC / len(x_NF) + penalty * penalised_FC).ravel()

    first_FC = np.zeros(shape)
    if start is not None:
        weight_HC, bias_C = start.weight_HC[:-1], start.weight_HC[-1:]
        projected_FC = weight_HC if basis_HN is None else basis_HN.T @ weight_HC
        first_FC = np.concatenate([projected_FC, bias_C])
    options = {"maxiter": _MOST_STEPS}
    found = optimize.minimize(loss, first_FC.ravel(), jac=True, method="L-BFGS-B", options=options)
    weight_FC = found.x.reshape(shape)
    weight_HC = weight_FC[:-1] if basis_HN is None else basis_HN @ weight_FC[:-1]
    return LinearProbe(mean_H, scale_H, np.concatenate([weight_HC, weight_FC[-1:]]))


@dataclass(frozen=True)
class LayerProbes:
    """A layer's probe and its control, with the log-loss on the held-out fit questions, in nats."""

    probe: LinearProbe
    control: LinearProbe
    penalty: float
    held_out_loss: float


def fit_layer(states_NH: np.ndarray, labels: Labels, control: Labels) -> LayerProbes:
    """Fits the probe with the best penalty, and the control task's probe with the same one.

    The penalty with the lowest log-loss on the last quarter of the questions, after a fit on the
    others, is used for a fit on all of them. Rows must be in random order.
    """
    kept = len(states_NH) - max(len(states_NH) // HELD_OUT, 1)
    losses, start = [], None
    for penalty in PENALTIES:
        start = fit(states_NH[:kept], labels.of(slice(kept)), penalty, start)
        losses.append(start.log_loss(states_NH[kept:], labels.of(slice(kept, None))))
    best = int(np.argmin(losses))
    penalty = PENALTIES[best]
    return LayerProbes(
        fit(states_NH, labels, penalty), fit(states_NH, control, penalty), penalty, losses[best]
    )


def _with_one(x_NH: np.ndarray) -> np.ndarray:
    return np.concatenate([x_NH, np.ones((len(x_NH), 1))], axis=1)
