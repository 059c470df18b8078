"""The differences that a test of a given size can detect. Pure functions.

Differences and shares are between 0 and 1.
"""

import scipy

POWER = 0.8


def effective_questions(questions: float, seeds: int, correlation: float) -> float:
    """Returns the independent questions that `seeds` answers per question amount to (Kish 1965).

    `correlation` is that of a question's differences over seeds. At 1 more seeds add nothing; at 0
    they are worth as much as more questions.
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
    """Returns the smallest paired difference of accuracies that McNemar's test detects.

    Connor 1987 (Biometrics 43, 207): n d^2 = (z_a sqrt(D) + z_b sqrt(D - d^2))^2, solved for d,
    with n questions of which the share D (discordance) is answered differently. None if no
    difference suffices, since d cannot exceed D.
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
    """Returns the smallest detectable difference: half-width + z_b * error (after Bloom 1995)."""
    return float(half_width + scipy.stats.norm.ppf(power) * standard_error)
