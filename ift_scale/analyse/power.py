"""What difference a test of this size could have shown. Pure functions; differences and shares are between 0 and 1."""

import scipy

POWER = 0.8


def effective_questions(questions: float, seeds: int, correlation: float) -> float:
    """Independent questions that `seeds` answers to each of `questions` are worth (design effect, Kish 1965).

    `correlation`: of a question's differences over seeds; at 1 more seeds add nothing, at 0 they are as good as more questions.
    """
    return questions * seeds / (1 + (seeds - 1) * correlation)


def detectable_difference(
    questions: float,
    discordance: float,
    level: float,
    power: float = POWER,
    seeds: int = 1,
    correlation: float = 1.0,
) -> float | None:
    """Smallest paired difference of accuracies that McNemar's test shows at the level with this power.

    Connor 1987 (Biometrics 43, 207): n d^2 = (z_a sqrt(D) + z_b sqrt(D - d^2))^2, solved for d, with n questions of which the
    share D (discordance) is answered differently. None where no difference would do: d may not exceed D.
    """
    n = effective_questions(questions, seeds, correlation)
    z_level, z_power = scipy.stats.norm.ppf((1 + level) / 2), scipy.stats.norm.ppf(power)
    under_root = n + z_power**2 - z_level**2
    if under_root < 0 or discordance <= 0:
        return None
    difference = (
        discordance**0.5 * (n**0.5 * z_level + z_power * under_root**0.5) / (n + z_power**2)
    )
    return float(difference) if difference <= discordance else None


def detectable_by_error(half_width: float, standard_error: float, power: float = POWER) -> float:
    """Smallest difference that is shown with this power: the interval's half-width + z_b * error (after Bloom 1995)."""
    return float(half_width + scipy.stats.norm.ppf(power) * standard_error)
