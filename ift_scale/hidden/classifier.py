"""Linear probes: logistic regression from a layer's states to the right option.

Multinomial from one state per question, (N, H), to a letter; conditional (McFadden 1974) from one
state per option, (N, C, H), all with the same weights, to the option.

Notation: N questions, H features, C options, K columns of weights (C or 1). Pure functions.
"""

from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts when they are used

PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)
"""Strengths of the L2 penalty to choose from, strongest first."""
HELD_OUT = 4
"""One of so many fit questions is held out to choose the penalty and the layer."""
_MOST_STEPS = 200


@dataclass(frozen=True)
class Labels:
    """The option to predict for each question, and its number of options, both of shape (N,).

    `most_choices`: the most options of any question that a probe is fitted on or applied to, C.
    """

    option_N: np.ndarray
    num_choices_N: np.ndarray
    most_choices: int

    def of(self, rows: slice | np.ndarray) -> "Labels":
        return Labels(self.option_N[rows], self.num_choices_N[rows], self.most_choices)

    def exists(self) -> np.ndarray:
        """Returns a mask of the options that each question has, shape (N, C)."""
        return np.arange(self.most_choices) < self.num_choices_N[:, None]

    def masked(self, logits_NC: np.ndarray) -> np.ndarray:
        """Returns the logits, -inf for options that a question does not have."""
        return np.where(self.exists(), logits_NC, -np.inf)


@dataclass(frozen=True)
class LinearProbe:
    """Weights on standardised states; `weight_HK`'s last row is the bias."""

    mean_H: np.ndarray
    scale_H: np.ndarray
    weight_HK: np.ndarray

    def logits(self, states: np.ndarray) -> np.ndarray:
        """Returns the options' logits (N, C) from states (N, H) or (N, C, H)."""
        x = _with_one((states - self.mean_H) / self.scale_H)
        return np.asarray((x @ self.weight_HK).reshape(len(x), -1))

    def right(self, states: np.ndarray, labels: Labels) -> np.ndarray:
        """Returns a mask (N,): the question's option ranks first among those that it has."""
        return np.asarray(labels.masked(self.logits(states)).argmax(1) == labels.option_N)

    def log_loss(self, states: np.ndarray, labels: Labels) -> float:
        """Returns the mean cross-entropy in nats."""
        logprobs_NC = scipy.special.log_softmax(labels.masked(self.logits(states)), axis=1)
        return -float(logprobs_NC[np.arange(len(states)), labels.option_N].mean())


def fit(
    states: np.ndarray, labels: Labels, penalty: float, start: LinearProbe | None = None
) -> LinearProbe:
    """Minimises the mean cross-entropy + penalty / 2 |W|^2 by L-BFGS; the bias is not penalised.

    `states`: (N, H) or (N, C, H), M rows. They are standardised by the mean and the standard
    deviation of the rows that exist. `start`: a probe of the same states, whose weights are the
    first guess.
    """
    num_weights = labels.most_choices if states.ndim == 2 else 1
    states_MH = states.reshape(-1, states.shape[-1]).astype(np.float64)
    there_MH = states_MH if states.ndim == 2 else states_MH[labels.exists().ravel()]
    mean_H, scale_H = there_MH.mean(0), there_MH.std(0)
    scale_H[scale_H == 0] = 1.0
    x_MH = (states_MH - mean_H) / scale_H
    # With more features than rows, the solution is in the span of the rows.
    basis_HM = np.linalg.qr(x_MH.T)[0] if len(x_MH) < x_MH.shape[1] else None
    x_MF = _with_one(x_MH if basis_HM is None else x_MH @ basis_HM)
    rows_N, shape = np.arange(len(states)), (x_MF.shape[1], num_weights)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight_FK = flat.reshape(shape)
        logits_NC = labels.masked((x_MF @ weight_FK).reshape(len(states), -1))
        error_NC = scipy.special.softmax(logits_NC, axis=1)
        chosen_N = logits_NC[rows_N, labels.option_N] - scipy.special.logsumexp(logits_NC, axis=1)
        error_NC[rows_N, labels.option_N] -= 1
        penalised_FK = weight_FK * (np.arange(shape[0]) < shape[0] - 1)[:, None]
        value = -chosen_N.mean() + penalty / 2 * (penalised_FK**2).sum()
        slope_FK = x_MF.T @ error_NC.reshape(len(x_MF), -1) / len(states)
        return float(value), (slope_FK + penalty * penalised_FK).ravel()

    first_FK = np.zeros(shape)
    if start is not None:
        weight_HK, bias_K = start.weight_HK[:-1], start.weight_HK[-1:]
        projected_FK = weight_HK if basis_HM is None else basis_HM.T @ weight_HK
        first_FK = np.concatenate([projected_FK, bias_K])
    options = {"maxiter": _MOST_STEPS}
    found = scipy.optimize.minimize(
        loss, first_FK.ravel(), jac=True, method="L-BFGS-B", options=options
    )
    weight_FK = found.x.reshape(shape)
    weight_HK = weight_FK[:-1] if basis_HM is None else basis_HM @ weight_FK[:-1]
    return LinearProbe(mean_H, scale_H, np.concatenate([weight_HK, weight_FK[-1:]]))


@dataclass(frozen=True)
class LayerProbes:
    """A layer's probe and its control, with the log-loss on the held-out fit questions, in nats."""

    probe: LinearProbe
    control: LinearProbe
    penalty: float
    held_out_loss: float


def fit_layer(states: np.ndarray, labels: Labels, control: Labels) -> LayerProbes:
    """Fits the probe with the best penalty, and the control task's probe with the same one.

    The penalty with the lowest log-loss on the last quarter of the questions, after a fit on the
    others, is used for a fit on all of them. Rows must be in random order.
    """
    kept = len(states) - max(len(states) // HELD_OUT, 1)
    losses, start = [], None
    for penalty in PENALTIES:
        start = fit(states[:kept], labels.of(slice(kept)), penalty, start)
        losses.append(start.log_loss(states[kept:], labels.of(slice(kept, None))))
    best = int(np.argmin(losses))
    penalty = PENALTIES[best]
    return LayerProbes(
        fit(states, labels, penalty), fit(states, control, penalty), penalty, losses[best]
    )


def _with_one(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)
