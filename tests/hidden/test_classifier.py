"""Linear probes on planted states: what is decodable, what is not, and how the penalty is used."""

import numpy as np
import pytest
from scipy import optimize

from ift_scale.hidden.classifier import Labels, fit, fit_layer

RNG = np.random.default_rng


def _planted(
    num: int, width: int, strength: float, seed: int = 0
) -> tuple[np.ndarray, Labels, Labels]:
    """States whose first four features show the right letter, and random labels as a control."""
    rng = RNG(seed)
    letter = rng.integers(4, size=num)
    states = rng.normal(size=(num, width))
    states[:, :4] += strength * np.eye(4)[letter]
    control = rng.integers(4, size=num)
    four = np.full(num, 4)
    return states.astype(np.float32), Labels(letter, four, 4), Labels(control, four, 4)


def _accuracy(strength: float, width: int) -> tuple[float, float]:
    states, letters, control = _planted(1400, width, strength)
    fitted, applied = slice(400), slice(400, None)
    found = fit_layer(states[fitted], letters.of(fitted), control.of(fitted))
    rest = states[applied]
    return (
        float(found.probe.right(rest, letters.of(applied)).mean()),
        float(found.control.right(rest, control.of(applied)).mean()),
    )


def test_a_planted_answer_is_decodable_and_the_control_is_at_chance() -> None:
    probe, control = _accuracy(strength=4.0, width=24)
    assert probe > 0.95
    assert control == pytest.approx(0.25, abs=0.06)  # 4 standard errors of 1,000 questions


def test_states_without_the_answer_give_chance() -> None:
    probe, _ = _accuracy(strength=0.0, width=24)
    assert probe == pytest.approx(0.25, abs=0.06)


def test_more_features_than_questions_give_the_same_probe() -> None:
    """The fit in the span of the questions is the fit of all features."""
    states, letters, _ = _planted(60, 80, 2.0)
    wide = fit(states, letters, 0.1)
    # Repeated questions leave the loss, the mean and the standard deviation as they are.
    twice = np.concatenate([states, states])
    repeated = Labels(np.tile(letters.option_N, 2), np.tile(letters.num_choices_N, 2), 4)
    narrow = fit(twice, repeated, 0.1)
    np.testing.assert_allclose(wide.logits(states), narrow.logits(states), atol=2e-2)


def test_a_stronger_penalty_gives_smaller_weights_and_the_first_guess_does_not_matter() -> None:
    states, letters, _ = _planted(200, 12, 1.0)
    weak, strong = fit(states, letters, 0.01), fit(states, letters, 1.0)
    assert np.abs(strong.weight_HK[:-1]).sum() < 0.5 * np.abs(weak.weight_HK[:-1]).sum()
    again = fit(states, letters, 1.0, start=weak)
    np.testing.assert_allclose(again.logits(states), strong.logits(states), atol=1e-2)


def test_a_letter_that_a_question_does_not_have_is_never_ranked_first() -> None:
    rng = RNG(1)
    num_choices = np.where(np.arange(300) < 150, 2, 4)
    letter = np.where(num_choices == 2, 0, 3)
    states = rng.normal(size=(300, 6)).astype(np.float32)
    labels = Labels(letter, num_choices, 4)
    found = fit(states, labels, 0.1)
    assert found.right(states, labels)[:150].mean() > 0.9  # D is out of the question here
    assert found.log_loss(states, labels) < np.log(4)


def _planted_texts(num: int, strength: float) -> tuple[np.ndarray, Labels]:
    """States of four options each, of which the right one's differs in one direction."""
    rng = RNG(3)
    option = rng.integers(4, size=num)
    states = rng.normal(size=(num, 4, 10)) + 3 * rng.normal(size=(num, 1, 10))  # the question's
    states[np.arange(num), option, 2] += strength
    return states.astype(np.float32), Labels(option, np.full(num, 4), 4)


def test_one_state_per_option_gives_one_direction() -> None:
    states, labels = _planted_texts(1200, 4.0)
    fitted, applied = slice(200), slice(200, None)
    found = fit(states[fitted], labels.of(fitted), 0.01)
    assert found.right(states[applied], labels.of(applied)).mean() > 0.9
    assert np.abs(found.weight_HK[:-1, 0]).argmax() == 2
    nothing, labels = _planted_texts(1200, 0.0)
    found = fit(nothing[fitted], labels.of(fitted), 0.01)
    assert found.right(nothing[applied], labels.of(applied)).mean() == pytest.approx(0.25, abs=0.06)


def test_the_weights_of_one_state_per_option_are_those_of_a_logit_of_differences() -> None:
    """With two options, the conditional logit is the logistic regression of their difference."""
    states, labels = _planted_texts(300, 1.0)
    pair, labels = states[:, :2], Labels(labels.option_N % 2, np.full(300, 2), 2)
    penalty = 0.1
    found = fit(pair, labels, penalty)
    right_minus_wrong = (pair[:, 0] - pair[:, 1]) * np.where(labels.option_N == 0, 1, -1)[:, None]

    def loss(weight_H: np.ndarray) -> float:
        margin_N = right_minus_wrong / found.scale_H @ weight_H
        return float(np.log1p(np.exp(-margin_N)).mean() + penalty / 2 * (weight_H**2).sum())

    expected_H = optimize.minimize(loss, np.zeros(10), tol=1e-10).x
    np.testing.assert_allclose(found.weight_HK[:-1, 0], expected_H, atol=1e-3)


def test_missing_options_are_never_ranked_first_and_teach_nothing() -> None:
    states, labels = _planted_texts(400, 3.0)
    num_choices = np.where(labels.option_N < 2, 2, 4)
    short = Labels(labels.option_N, num_choices, 4)
    found = fit(states, short, 0.01)
    assert found.right(states, short).mean() > found.right(states, labels).mean() > 0.8
    missing = np.where(np.arange(4)[:, None] >= num_choices[:, None, None], states[:, 1:2], states)
    again = fit(missing, short, 0.01)
    assert (again.right(missing, short) == found.right(states, short)).mean() > 0.97


def test_a_constant_feature_is_no_division_by_zero() -> None:
    states, letters, _ = _planted(100, 8, 3.0)
    states[:, 7] = 5.0
    assert np.isfinite(fit(states, letters, 0.1).logits(states)).all()
